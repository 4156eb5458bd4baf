"""arXiv: a client that is safe around its failures, what it says kept with its history, and entries held against it.

settings, pace, transport   one request at a time, at a distance, with patience; every failure told apart
record, feed, oai           what arXiv says about a paper, read from either of its interfaces
batches, search             lists of ids and queries, page by page
archive, history            statements -> database, and what changed when
reconcile, correct          entries held against arXiv, and corrected
sync, harvest               the two ways to follow it
announcements, status       its calendar, and whether what is known is stale
"""
