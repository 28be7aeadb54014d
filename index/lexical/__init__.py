"""The lexical retriever: BM25 by postings, a cache of the full text that answers fast at any number of passages."""
