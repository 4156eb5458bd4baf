"""Links: every address of every entry asked, politely, and what became of it kept.

addresses        entries -> addresses, and where each is used
outcome          the states an address can be in
closed           sites known to have closed
pace, ask, run   one address; all of them, host by host
record           outcomes -> database, and what need not be asked again
report, advice   what is known about the addresses of entries, and what to do about it
"""
