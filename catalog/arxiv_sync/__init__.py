"""arXiv: a client that is safe around its failures, what it says kept with its history, and entries held against it.

settings, pace, transport   one request at a time, at a distance, with patience; every failure told apart
record, feed                what arXiv says about a paper, and the query interface's feed
oai, raw, authors           the harvest interface's pages and records
batches, search             lists of ids and queries, page by page
archive, changes            statements -> database, and what changed when
reconcile, correct          entries held against arXiv, and corrected
sync, harvest, bookmark     the two ways to follow it, and where a harvest goes on
announcements, status       its calendar, and whether what is known is stale
"""
