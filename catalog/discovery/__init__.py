"""Papers found on arXiv that may belong into the catalog: scored, kept in an inbox, decided by a person.

    queries.toml, queries   what is searched for, and the words by which papers are scored
    phrases, scoring        how much a paper looks like one on tuning, and by which words
    categories, slugs       the category and the name suggested for it
    entries                 what is catalogued already
    candidates              rows of the inbox
    sieve, discover         records -> new candidates
    inbox, accept           the decisions: accepted, rejected, restored

Nothing here asks the network: records come from catalog.arxiv_sync.
"""
