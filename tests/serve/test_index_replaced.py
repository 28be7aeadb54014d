"""A server whose index is deleted and made anew."""

import shutil

from index import Document, Index


def test_a_server_answers_from_an_index_that_was_made_anew(serve, client, index, encoder):
    url, _ = serve("x")

    def search():
        return client.post(f"{url}/v1/search", json={"query": "interpreter lock"}).json()

    assert "gil" in {hit["doc_id"] for hit in search()["hits"]}
    shutil.rmtree(index.folder)
    assert "has no index" in search()["error"]["message"]
    with Index.create(index.folder, encoder) as new:
        new.add(Document("new", "The new index is about the lock of a bicycle."))
    assert [hit["doc_id"] for hit in search()["hits"]] == ["new"]
