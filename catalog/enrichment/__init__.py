"""What other indexes say about papers, held against the entries; nothing here changes an entry.

answers     untrusted JSON -> the few facts that matter
sources     what to ask OpenAlex and Crossref about an entry
client      asking one source: in its pace, with patience, until it is given up
cache       facts -> database, good for thirty days
run         all entries from all sources
venues      whether two names mean one place
proposals   what an entry could take over
"""
