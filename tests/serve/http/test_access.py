"""Requests with other Host headers, from other origins, and without the API key."""

import openai
import pytest

from gpt_core.common.errors import InputError
from serve.app import create_loading_app
from serve.run_server import run_server
from tests.serve.conftest import SAYS, chat
from tests.serve.test_api import check_envelope

SEARCH = {"query": "interpreter lock", "mode": "lexical"}


def test_a_web_page_cannot_read_the_index_by_dns_rebinding(serve, client):
    url, _ = serve(SAYS)
    port = url.rpartition(":")[2]
    evil = f"evil.example:{port}"
    for host in (evil, "", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", "[::1].evil.example"):
        headers = {"Host": host, "Origin": f"http://{evil}"}
        error = check_envelope(
            client.post(f"{url}/v1/search", json=SEARCH, headers=headers), 403, "host_not_allowed"
        )
        assert repr(host) in error["message"]
        for path in ("/", "/docs", "/v1/models", "/openapi.json", "/static/page.js"):
            check_envelope(client.get(url + path, headers=headers), 403)
    for host in ("localhost", f"LocalHost:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"):
        assert client.post(f"{url}/v1/search", json=SEARCH, headers={"Host": host}).status_code == 200
    for path in ("/livez", "/readyz"):
        assert client.get(url + path, headers={"Host": evil}).status_code == 200


@pytest.mark.parametrize("names", [["search.example"], ["*"]])
def test_other_host_names_can_be_allowed(serve, client, names):
    url, _ = serve(SAYS, access={"allowed_hosts": names})
    for host, status in (("Search.example:80", 200), ("evil.example", 200 if names == ["*"] else 403)):
        assert client.get(f"{url}/v1/models", headers={"Host": host}).status_code == status


def test_other_origins_can_neither_post_without_preflight_nor_pass_it(serve, client):
    url, _ = serve(SAYS)
    origin = {"Origin": "http://evil.example"}
    body = '{"query": "interpreter lock", "mode": "lexical"}'
    # the types of content that a browser sends without asking first, and none
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        headers = origin | ({"Content-Type": kind} if kind else {})
        check_envelope(client.post(f"{url}/v1/search", content=body, headers=headers), 422)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = client.options(f"{url}/v1/search", headers=origin | asked)
    assert preflight.status_code == 405
    allowed = client.post(f"{url}/v1/search", json=SEARCH, headers=origin)
    for response in (preflight, allowed):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_with_a_key_the_api_needs_it_and_pages_and_health_do_not(serve, client):
    url, _ = serve(SAYS, access={"api_key": "s3cret"})
    for authorization in (None, "Bearer", "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "s3cret"):
        headers = {"Authorization": authorization} if authorization else {}
        response = client.post(f"{url}/v1/search", json=SEARCH, headers=headers)
        check_envelope(response, 401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    check_envelope(client.get(f"{url}/v1/nothing"), 401)
    for path in ("/", "/docs", "/openapi.json", "/static/page.js", "/livez", "/readyz"):
        assert client.get(url + path).status_code == 200
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} s3cret"}
        assert client.post(f"{url}/v1/search", json=SEARCH, headers=headers).status_code == 200


def test_openais_client_sends_the_key(serve):
    url, app = serve(SAYS, access={"api_key": "s3cret"})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret") as api:
        assert chat(api, temperature=0).choices[0].message.content == SAYS
        api.api_key = "wrong"
        with pytest.raises(openai.AuthenticationError, match="The API key is wrong"):
            chat(api)
    assert "s3cret" not in repr([vars(middleware) for middleware in app.user_middleware])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api_key": ""}, "API key is empty"),
        ({"api_key": "clé"}, "letters beyond ASCII"),
        ({"allowed_hosts": ["http://x.example"]}, "'http://x.example'; expected a name"),
        ({"allowed_hosts": ["x.example:80"]}, "without scheme and port"),
    ],
)
def test_bad_keys_and_host_names_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        create_loading_app(**options)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_beyond_this_machine_needs_a_key(host, monkeypatch):
    monkeypatch.delenv("ZHIZHI_API_KEY", raising=False)
    with pytest.raises(InputError, match=f"host is {host}, which other machines can reach; set an API key"):
        run_server(index="nowhere", host=host, port=0)
