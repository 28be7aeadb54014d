"""Documents, passages, the store, FAISS and hybrid search."""

from index.index import Index
from index.reading.document import Document
from index.reading.read import iter_documents
from index.search.rank import Hit

__all__ = ["Document", "Hit", "Index", "iter_documents"]
