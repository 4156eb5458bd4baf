"""Papers found on arXiv that may belong into the catalog: scored, kept in an inbox, decided by a person.

    queries.toml, queries   what is searched for, and the words by which papers are scored
    phrases, scoring        how much a paper looks like one on tuning, and by which words
    categories, slugs       the category and the name suggested for it
    entries                 what is catalogued already
    candidates              rows of the inbox
    sieve                   records -> new candidates
    search                  the stored queries, asked of arXiv page by page
    inbox, accept           the decisions: accepted, rejected, restored

Only search asks the network, through catalog.arxiv_sync; the harvest uses the sieve as well.
"""
