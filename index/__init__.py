"""Documents, passages, the store, FAISS and hybrid search."""

from index.documents import Document, iter_documents
from index.index import Index
from index.retrieval import Hit

__all__ = ["Document", "Hit", "Index", "iter_documents"]
