"""The page in a real browser: talking, branches, injection, two tabs, a lost server, and everybody's use."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chained import ALPHABET, TOKENIZER, alphabet_gpt, chained_gpt, counting_gpt
from playwright.sync_api import expect, sync_playwright
from running import Running

from nanochat_lib.serving.one_file import inside, one_file

expect.set_options(timeout=20_000)  # a busy machine is no fault of the page
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    *(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")),
)


def browser_program(playwright) -> str:
    """Find a Chromium; skip the tests where there is none."""
    own = playwright.chromium.executable_path
    found = [
        path for path in (os.environ.get("CHROMIUM"), *PLACES, own) if path and Path(path).exists()
    ]
    if not found:
        pytest.skip("no Chromium here: apt install chromium, or name one in CHROMIUM")
    return found[0]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        program = browser_program(playwright)
        # A container has no user namespaces for the browser's own sandbox, which these pages do not need.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def watched(context):
    """A page, and what it complained about or asked of whom; in the end it must have complained of nothing."""
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    usual = "the server responded with a status of 400"  # a browser says so itself
    page.on("console", lambda m: None if usual in m.text else complaints.append(m.text))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    assert complaints == []


@pytest.fixture(params=["server", "file"])
def talk(request, watched, tmp_path):
    """Open the page of a model: from a server, or as a file."""
    running = []

    def open_page(model):
        if request.param == "file":
            path = tmp_path / "a [b] c.html"
            path.write_text(one_file(inside(model, TOKENIZER, "tiny")), encoding="utf-8")
            watched.goto(path.as_uri())
        else:
            looked = json.dumps(inside(model, TOKENIZER, "tiny"))
            running.append(Running(model=model, inside=looked).__enter__())
            watched.goto(running[0].url)
        expect(watched.locator("#model")).to_have_text("tiny")
        return watched

    yield open_page
    allowed = ("file:", "blob:", *(server.url for server in running))
    assert all(url.startswith(allowed) for url in watched.asked), watched.asked
    for server in running:
        server.__exit__()


def ask(page, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_visible()


def replies(page) -> list[str]:
    return page.locator("article.assistant .text").all_inner_texts()


# --- talking -------------------------------------------------------------------------------------


def test_a_reply_arrives_and_is_kept(talk):
    page = talk(alphabet_gpt())
    ask(page, "hello")
    assert replies(page) == [ALPHABET]
    assert re.search(r"\d+ / 128", page.inner_text("#used"))
    ask(page, "more")
    page.reload()
    page.locator("#chats button.open").click()
    assert replies(page) == [ALPHABET] * 2
    assert page.locator("article.user .bubble").all_inner_texts() == ["hello", "more"]


def test_the_examples_can_be_clicked(talk):
    page = talk(alphabet_gpt())
    page.locator(".empty button").first.click()
    expect(page.locator("article.assistant .text")).to_have_text(ALPHABET)


def test_an_edited_question_is_a_branch(talk):
    page = talk(alphabet_gpt())
    ask(page, "one")
    page.get_by_role("button", name="Edit").click()
    page.locator("article.user textarea").fill("two\nlines")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("article.assistant .text")).to_have_text(ALPHABET)
    assert page.locator("article.user .bubble").all_inner_texts() == ["two\nlines"]
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator("article.user .bubble").all_inner_texts() == ["one"]
    page.get_by_role("button", name="Again").click()
    expect(page.locator("article.assistant .tools")).to_contain_text("2 / 2")


def test_the_calculator_is_a_step_to_unfold(talk):
    page = talk(counting_gpt())
    ask(page, "hello")
    assert replies(page) == ["Q", "."]
    step = page.locator("details.step")
    step.locator("summary").click()
    expect(step.locator("code")).to_have_text("3*4 = 12")
    sent = page.evaluate("messages(path())[1].content")  # the next turn tells the model of its call
    kinds = [(part["type"], part["text"]) for part in sent]
    assert kinds == [("text", "Q"), ("python", "3*4"), ("python_output", "12"), ("text", ".")]
    ask(page, "more")
    assert replies(page) == ["Q", "."] * 2 and page.locator(".failed").count() == 0


def test_stop_keeps_what_was_said(watched):
    with Running(0.3) as server:
        watched.goto(server.url)
        watched.fill("#text", "hello")
        watched.keyboard.press("Enter")
        expect(watched.locator("article.assistant .text")).to_contain_text("abc")
        watched.keyboard.press("Escape")
        expect(watched.locator("article.assistant .failed")).to_have_text("(stopped)")
        server.wait_until_idle(10)
        assert ALPHABET.startswith(replies(watched)[0]) and replies(watched) != [ALPHABET]


def test_a_lost_server_is_said_and_nothing_is_lost(context):
    page = context.new_page()  # the browser complains of the lost connection: that is right
    with Running(0.3) as server:
        page.goto(server.url)
        page.fill("#text", "hello")
        page.keyboard.press("Enter")
        expect(page.locator("article.assistant .text")).to_contain_text("abc")
        server.server.force_exit = True
        threading.Thread(target=server.__exit__).start()
        expect(page.locator("article.assistant .failed")).to_be_visible()
        expect(page.locator("#send")).to_be_visible()
        assert "abc" in replies(page)[0]
        server.thread.join(10)
        ask(page, "are you there?")
        expect(page.locator("article.assistant .failed").last).to_contain_text("cannot be reached")
        assert "are you there?" in page.inner_text("#talk")


def test_a_message_too_long_is_refused_in_words(talk):
    page = talk(alphabet_gpt())
    page.fill("#text", "x" * 300)
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .failed")).to_contain_text("the context 128")


# --- what a course shows -------------------------------------------------------------------------


def test_tokens_tell_their_odds(talk):
    page = talk(alphabet_gpt())
    ask(page, "hello")
    page.locator("#inspect").check()
    page.locator(".token", has_text="b").hover()
    lines = page.inner_text("#tip").split("\n")
    assert re.fullmatch(r' *\d+\.\d%  "b" \(98\)', lines[0])
    shares = [float(line.split("%")[0]) for line in lines[2:]]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and shares[0] > 99


def test_what_is_typed_is_cut_at_once(talk):
    page = talk(alphabet_gpt())
    page.fill("#text", "añb")
    expect(page.locator("#cut")).to_contain_text("4 tokens")
    assert page.locator("#cut span").all_inner_texts() == ["a", "<C3>", "<B1>", "b"]
    assert page.locator("#cut span").first.get_attribute("title") == "97"


def test_a_head_shows_what_it_reads(talk):
    page = talk(alphabet_gpt())
    ask(page, "hi")
    page.get_by_role("button", name="Look inside").click()
    tokens = page.locator("#read span")
    expect(tokens).to_have_count(len("hi") + 4 + 26)
    expect(tokens.last).to_have_class("asking")
    shares = [tokens.nth(i).get_attribute("title") for i in range(32)]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=2)
    page.keyboard.press("ArrowLeft")
    expect(tokens.nth(30)).to_have_class("asking")
    expect(tokens.last).to_have_attribute("title", "comes later")
    tokens.nth(2).click()
    expect(tokens.nth(2)).to_have_class("asking")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#inside")).to_be_hidden()


# --- injection -----------------------------------------------------------------------------------

EVIL = [
    '<img src=x onerror="window.hacked=1">',
    "<script>window.hacked=1</script>",
    '<svg onload="window.hacked=1"><style>*{display:none}</style></svg>',
    "[click](javascript:window.hacked=1)",
    '<a href="javascript:window.hacked=1" id=send>x</a>',
    '<form action="https://example.org"><input name=q><button>go</button></form>',
    "![picture](https://example.org/a.png)",
    '<iframe srcdoc="<script>parent.hacked=1</script>"></iframe>',
    "```html\n</code></pre><img src=x onerror=window.hacked=1>\n```",
    "\\(\\href{javascript:window.hacked=1}{x} \\includegraphics{https://example.org/a.png}\\)",
    "$$" + "{" * 300 + "$$",
    '<math><mtext><table><mglyph><style><img src=x onerror="window.hacked=1">',
    "</div></article><h1>" + "x" * 2000,
]


def test_nothing_that_is_written_acts(talk, tmp_path):
    page = talk(alphabet_gpt())
    for i, text in enumerate(EVIL):
        if i % 4 == 0:
            page.locator("#new").click()
        page.fill("#text", text[:40])
        page.keyboard.press("Enter")
        expect(page.locator("#send")).to_be_visible()
    step = {"call": EVIL[0], "output": EVIL[1]}
    node = {"id": "1", "parent": None, "role": "user", "text": EVIL[0], "tokens": [], "steps": []}
    nodes = {"1": node}
    for i, text in enumerate(EVIL):
        token = {"text": text, "id": 1, "logprob": -1.0, "others": []}
        nodes[f"a{i}"] = {
            **node, "id": f"a{i}", "parent": "1", "role": "assistant", "text": text, "steps": [step],
            "note": text, "tokens": [token],
        }  # fmt: skip
    chats = []
    for i, text in enumerate(EVIL):
        chats.append({"id": f"c{i}", "title": text, "time": i, "nodes": nodes, "leaf": f"a{i}"})
    file = tmp_path / "chats.json"
    file.write_text(json.dumps({"nanochat": 1, "chats": chats}), encoding="utf-8")
    page.locator("#file").set_input_files(file)
    for inspect in (False, True):
        page.locator("#inspect").set_checked(inspect)
        for i in range(len(EVIL)):
            page.locator("#chats button.open", has_text=EVIL[i][:20]).last.click()
            page.wait_for_timeout(20)
    assert page.evaluate("window.hacked") is None
    bad = "article :is(img, script, iframe, form, input, style, svg, [onerror], [onload], [id], [style*=url])"
    assert page.locator(bad).count() == 0
    links = page.evaluate("[...document.querySelectorAll('article a')].map((a) => a.href)")
    assert not any(link.startswith("javascript") for link in links)


def test_markdown_code_and_formulas_are_drawn(talk):
    page = talk(alphabet_gpt())
    text = "# Title\n\n- **bold** `x<y`\n\n```python\ndef f(): return 'a'\n```\n\n\\(x^2\\) costs $5 and $6\n\n$$\\frac12$$\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    drawn = page.evaluate("(text) => { const d = document.createElement('div'); d.append(markdown(text)); return d.innerHTML; }", text)  # fmt: skip
    for part in ("<h1>", "<li><strong>bold</strong> <code>x&lt;y</code>", "hljs-keyword", "<msup>"):
        assert part in drawn
    assert "<mfrac>" in drawn and "$5 and $6" in drawn and "<td>1</td>" in drawn


# --- keeping -------------------------------------------------------------------------------------


def test_two_tabs_lose_nothing(context, talk):
    first = talk(alphabet_gpt())
    second = context.new_page()
    second.goto(first.url)
    ask(first, "from the first")
    ask(second, "from the second")
    ask(first, "first again")
    first.reload()
    assert sorted(first.locator("#chats button.open").all_inner_texts()) == [
        "from the first",
        "from the second",
    ]
    second.get_by_role("button", name="Delete from the first").click()
    second.reload()
    assert second.locator("#chats button.open").all_inner_texts() == ["from the second"]
    first.reload()
    assert first.locator("#chats button.open").all_inner_texts() == ["from the second"]


def test_export_and_import_give_back_everything(talk, tmp_path):
    page = talk(alphabet_gpt())
    ask(page, "hello")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Delete hello").click()
    assert page.locator("#chats button.open").count() == 0
    page.reload()
    page.locator("#file").set_input_files(file)
    expect(page.locator("#chats button.open")).to_have_text("hello")
    page.fill("#search", "XYZ")
    expect(page.locator("#chats button.open")).to_have_count(1)  # the reply holds it
    page.fill("#search", "nowhere")
    expect(page.locator("#chats button.open")).to_have_count(0)


@pytest.mark.parametrize("text", ["", "{", '{"chats": [1]}', '{"chats": [{"id": "a", "title": "b", "nodes": {"x": null}}]}'])  # fmt: skip
def test_a_file_of_another_kind_is_refused(talk, tmp_path, text):
    page = talk(alphabet_gpt())
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    page.locator("#file").set_input_files(tmp_path / "x.json")
    expect(page.locator("#speed")).to_contain_text("holds no conversations")


def test_a_key_is_asked_for_as_a_password(browser):
    credentials = {"username": "anyone", "password": "s3cret"}
    context = browser.new_context(http_credentials=credentials)
    page = context.new_page()
    with Running(key="s3cret", model=alphabet_gpt()) as server:
        page.goto(server.url)
        ask(page, "hello")
        assert replies(page) == [ALPHABET]
    context.close()


# --- everybody -----------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser, talk, watched, theme):
    watched.emulate_media(color_scheme=theme)
    page = talk(counting_gpt())
    axe = Axe()
    found = [axe.run(page)]
    ask(page, "hello")
    page.locator("#inspect").check()
    page.locator("details.step summary").click()
    found.append(axe.run(page))
    page.get_by_role("button", name="Look inside").click()
    found.append(axe.run(page))
    reports = [result.generate_report() for result in found if result.violations_count]
    assert not reports, "\n".join(reports)


def test_a_telephone_is_wide_enough(talk, watched):
    watched.set_viewport_size({"width": 360, "height": 640})
    page = talk(chained_gpt(["<|assistant_start|>", ALPHABET, "<|assistant_end|>"]))
    ask(page, "hello " + "w" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#menu").click()
    expect(page.locator("#new")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#new")).not_to_be_in_viewport()


def test_the_keyboard_is_enough(talk):
    page = talk(alphabet_gpt())
    page.keyboard.type("hello")  # the page opens with the cursor in its field
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .text")).to_have_text(ALPHABET)
    assert page.locator("article.user .bubble").all_inner_texts() == ["hello\nyou"]
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Look inside":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#inside")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#inside")).to_be_hidden()
