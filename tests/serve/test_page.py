"""The page in a real browser, end to end."""

import re
import shutil
import socket

import pytest
from playwright.sync_api import expect, sync_playwright

from index import Document
from index.reading.pages import Pages
from serve import create_app
from serve.answers.reader import Reader
from serve.work.remote import RemoteGenerator
from tests.serve.conftest import DOCUMENTS, QUESTION, serving, speaker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
)
MIXED = " The lock became optional in October 2024! Cats purr on Tuesdays."
SUPPORT = "The interpreter lock became optional in October 2024."
ANSWERED = re.compile(r"^Answered in \d+\.\d s$")

expect.set_options(timeout=30_000)  # milliseconds; a busy machine takes its time

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that must neither raise, nor log an error, nor open a dialog."""
    with browser.new_context() as context:
        page = context.new_page()
        complaints = page.complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        yield page
        assert complaints == []


def test_an_answer_streams_in_and_its_citation_shows_the_sentence(page, serve):
    url, _ = serve(MIXED)
    page.goto(url)
    page.get_by_role("heading", level=1).click()  # away from the search box
    page.get_by_label("let the model write").check()
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("/")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(ANSWERED)
    expect(page.locator("#text")).to_contain_text("The lock became optional in October 2024!")
    expect(page.locator(".unsupported")).to_have_text("Cats purr on Tuesdays.no source found")
    expect(page.locator("mark")).to_have_text(SUPPORT)

    page.locator("#text").get_by_role("button", name=f": {SUPPORT}").press(
        "Enter"
    )  # the citation, by keyboard
    expect(page.locator("mark.strong")).to_have_text(SUPPORT)
    cited = page.locator(".hit", has=page.locator("mark"))
    expect(cited).to_be_focused()
    expect(cited.locator("h3")).to_have_text("The interpreter lock")
    expect(cited.locator(".passage")).to_have_text(DOCUMENTS[0].text)  # marking does not change the text
    expect(page.locator("#text .cite")).to_have_attribute("aria-pressed", "true")
    assert "q=When" in page.url


def test_a_quote_is_shown_with_its_place_and_marked_in_its_passage(page, serve, index):
    text = "# Notes\n\n## Kills\n\nKill it and run it again: it resumes from its last checkpoint.\n\n## Other\n\nNo."
    pages = Pages("page", (0, text.index("Kill it"), text.index("## Other")))
    index.add(Document("notes", text, "Notes", pages=pages))
    url, _ = serve(MIXED)
    page.goto(f"{url}/?q=How do I resume after I kill it and run it again?")
    expect(page.locator("#status")).to_have_text(ANSWERED)
    quote = page.locator("figure").first
    expect(quote.locator("blockquote")).to_contain_text(
        "Kill it and run it again: it resumes from its last checkpoint."
    )
    expect(quote.locator("figcaption")).to_have_text(re.compile(r"^Notes › Kills, page 2 · \d+ %$"))
    expect(page.locator(".hit h3", has_text="Notes")).to_have_text("Notes, pages 1–3")
    expect(page.locator("#draft")).not_to_be_visible()
    quote.locator(".cite").click()
    expect(page.locator("mark.strong")).to_have_text(
        "Kill it and run it again: it resumes from its last checkpoint."
    )


def test_the_readers_short_answer_is_marked_in_the_quote(page, serve, reader):
    url, _ = serve(MIXED, reader=Reader(reader))
    page.goto(f"{url}/?q={QUESTION}")
    expect(page.locator("#status")).to_have_text(ANSWERED)
    quote = page.locator("figure").first
    expect(quote.locator("mark")).to_have_text("October 2024")
    expect(quote.locator("blockquote")).to_contain_text(SUPPORT.removesuffix("."))


def test_markup_in_documents_titles_and_answers_stays_text(page, serve):
    url, _ = serve(" Scripts like <script> stay text!")
    page.goto(f"{url}/?answer=generate&q=What do scripts do on <img src=x onerror=alert(3)> pages?")
    expect(page.locator("#status")).to_have_text(ANSWERED)
    expect(page.locator("#text")).to_contain_text("Scripts like <script> stay text!")
    evil = page.locator(".hit", has_text="onerror")
    expect(evil.locator(".passage")).to_have_text(DOCUMENTS[3].text)
    expect(evil.locator("h3")).to_have_text("<b>Markup</b>")
    assert page.locator("main img, main script, main b").count() == 0


def test_an_unsupported_draft_is_not_shown_as_the_answer(page, serve):
    url, _ = serve(" Spain won against France.")
    page.goto(f"{url}/?answer=generate&q=Who won the 2010 World Cup?")
    expect(page.locator("#text")).to_have_text("The corpus does not say.")
    draft = page.locator("#draft")
    expect(draft.locator("p")).not_to_be_visible()
    draft.locator("summary").click()
    expect(draft.locator("p")).to_have_text("Spain won against France.")
    expect(page.locator(".hit")).to_have_count(4)


def test_chinese_offsets_and_characters_beyond_utf16(page, serve, index):
    text = "🐈‍⬛🐈 猫在白天睡觉。黄昏时猫捉老鼠。🐁"
    index.add(Document("mao", text, "猫"))
    url, _ = serve(" 猫捉老鼠。")
    page.goto(f"{url}/?answer=generate&q=猫捉什么？")
    expect(page.locator("#status")).to_have_text(ANSWERED)
    page.locator("#text .cite").click()
    expect(page.locator("mark.strong")).to_have_text("黄昏时猫捉老鼠。")
    expect(page.locator(".hit", has=page.locator("mark")).locator(".passage")).to_have_text(text)


def test_stop_ends_the_request_and_says_that_nothing_was_checked(page, serve, tokenizer):
    url, _ = serve(speaker(tokenizer, " on and", for_ever=True, block_size=2**15), draft=0)
    page.route(
        "**/v1/answer",
        lambda route: route.continue_(
            post_data={"answer": "generate", "question": "Why?", "stream": True, "max_tokens": 30_000}
        ),
    )
    page.goto(f"{url}/?answer=generate&q=Why?")
    expect(page.locator("#text")).to_contain_text("on and on and")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("has not been checked")
    expect(page.get_by_role("button", name="Stop")).not_to_be_visible()


def test_a_server_with_a_key_is_usable_from_the_page(page, serve):
    url, _ = serve(MIXED, access={"api_key": "s3cret"})
    page.goto(f"{url}/?answer=generate&q={QUESTION}")
    expect(page.locator("#status.error")).to_have_text("This server needs an API key.")
    for key, says in (("wrong", "The API key is wrong."), ("s3cret", ANSWERED)):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text(says)
    expect(page.get_by_label("API key")).not_to_be_visible()
    page.reload()
    expect(page.locator("#status")).to_have_text(ANSWERED)  # the tab remembers the key
    assert all("401" in message for message in page.complaints)  # the browser logs refused requests
    page.complaints.clear()


def test_a_reply_that_is_not_the_servers_is_one_sentence(page, serve):
    url, _ = serve(MIXED)
    page.route("**/v1/answer", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    page.goto(f"{url}/?answer=generate&q=Why?")
    expect(page.locator("#status.error")).to_have_text(
        "The server did not answer properly (status 502); try again."
    )
    page.complaints.clear()


def test_the_failure_of_a_remote_generator_is_said_above_the_quotes(page, index):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        generator = RemoteGenerator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    with serving(create_app(index, generator)) as url:
        page.goto(f"{url}/?answer=generate&q={QUESTION}")
        expect(page.locator("#status.error")).to_contain_text("cannot be reached")
        expect(page.locator(".hit")).to_have_count(4)
        expect(page.locator("#quotes blockquote")).to_contain_text("The interpreter lock became optional")


def test_of_two_questions_the_one_without_an_answer_is_named(page, serve):
    url, _ = serve(MIXED)
    page.goto(f"{url}/?q={QUESTION} Who won the chess tournament in Hastings?")
    expect(page.locator("#quotes blockquote")).to_contain_text("The interpreter lock became optional")
    expect(page.locator("#quotes > p")).to_have_text(
        "Not answered: Who won the chess tournament in Hastings?"
    )


def test_an_error_event_ends_the_page_s_connection(page, serve):
    url, _ = serve(MIXED)
    page.goto(url)
    closed = page.evaluate(
        """async () => {
            let closed = false;
            const bytes = new TextEncoder().encode('event: error\\ndata: {}\\n\\n');
            const body = new ReadableStream({ start: (c) => c.enqueue(bytes), cancel: () => (closed = true) });
            for await (const { name } of events(body)) break;
            await new Promise((resolve) => setTimeout(resolve, 50));
            return closed;
        }"""
    )
    assert closed


def test_an_error_is_shown(page, serve):
    url, _ = serve(MIXED)
    page.goto(url)
    page.get_by_role("searchbox").fill("why " * 2400)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#status.error")).to_contain_text("shorten it")
    page.complaints.clear()  # the browser logs a failed request


def test_api_page_lists_every_endpoint(page, serve, client):
    url, _ = serve(MIXED)
    page.goto(f"{url}/docs")
    paths = client.get(f"{url}/openapi.json").json()["paths"]
    expect(page.locator(".endpoint h2 code")).to_have_text(list(paths))
    expect(page.locator(".endpoint", has_text="/v1/answer").locator("td").first).to_have_text("question")
