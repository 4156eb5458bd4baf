"""One file a method, named as its entry."""
