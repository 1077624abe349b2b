"""
python -m pytest tests/test_extras_page.py          the page, in a real browser without a window
"""

import html
import json
import os
import re
import runpy
import shutil
import subprocess
import types
from xml.etree import ElementTree

import pytest
import torch
from conftest import ROOT, run, save_tiny, tiny_model

import data
import metrics
import sample
from drafters import Lookup, NGram
from extras import page
from model import unmask
from plumbing.randomness import seeded
from speculative import Network, generate, speculate

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
R = types.SimpleNamespace(**runpy.run_path(os.path.join(ROOT, "lessons", "record.py")))
EVIL = [
    "</script>",
    "<img src=x onerror=evil()>",
    "<!--",
    "&amp;",
    "DATA",
    "$&",
    "\n",
    "a",
    " b",
    "\u2028",
    "é",
    "\\",
]
POINTS = [
    {"model": model, "steps": steps, "temperature": t, "genppl": 40.0 * t / steps, "entropy": 3 + t}
    for model in ("<b>teacher</b>", "student")
    for steps in (1, 2)
    for t in (1.0, 0.9, 0.8)
]
POINTS.append({"model": "real text", "steps": None, "genppl": 20.0, "entropy": 3.9})


def settings(script, **changed):
    """The knobs of a script, some of them changed."""
    return types.SimpleNamespace(**{**vars(script.cfg), "device": "cpu", **changed})


def texts_of_samples(paths, knobs):
    """-> {name on the page: the text that sample.py writes with the same knobs}."""
    plain = settings(sample, num_samples=1, **knobs)
    drawn = {}
    for path in paths:
        model, checkpoint, autocast, note = sample.load(path, plain)
        template = sample.make_template(model, checkpoint["meta"], plain)
        with torch.no_grad(), autocast:
            args = model, checkpoint, template, note, plain
            name = "GPT" if model.config.causal else "masked diffusion, 4 steps"
            drawn[name] = sample.sample_plain(*args)[0][0]
            if model.config.causal:
                drawn["GPT + GPT drafts"] = sample.sample_with_drafts(*args)[0][0]
    return drawn


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """-> the path of a page: a GPT, with drafts, a diffusion model; {name: its text}."""
    folder = tmp_path_factory.mktemp("page")
    paths = [str(folder / f"{name}.pt") for name in ("gpt", "diffusion")]
    for path, causal in zip(paths, (True, False), strict=True):
        save_tiny(path, EVIL, causal=causal, block_size=64)
    (folder / "eval.json").write_text(json.dumps({"frontier": POINTS}))
    knobs = dict(draft=paths[0], gamma=3, steps=4, prompt="aé", temperature=1.5)
    out = str(folder / "page.html")
    frontier = str(folder / "eval.json")
    page.main(settings(page, ckpt=",".join(paths), out=out, frontier=frontier, **knobs))
    drawn = texts_of_samples(paths, knobs)
    assert len(drawn) == 3
    return out, drawn


@pytest.fixture(scope="module")
def in_browser(told, tmp_path_factory):
    """in_browser(script): what `report` holds when a script appended to the page has run."""
    if CHROMIUM is None:
        assert not os.environ.get("NEEDS_BROWSER"), "NEEDS_BROWSER is set, but there is no chromium"
        pytest.skip("needs chromium")
    with open(told[0], encoding="utf-8") as f:
        whole = f.read()

    def call(script):
        copy = tmp_path_factory.mktemp("copy") / "page.html"
        test = f"""<pre id=report></pre><script>
            // a page that nobody sees is given hardly any frames
            window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 16);
            const frame = () => new Promise(done => setTimeout(done, 100)), report = {{}};
            const press = (key, at = document.body) =>
                at.dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true}}));
            const isShown = n => n.tagName === "SPAN" && !n.classList.contains("todo");
            const visible = run => run.nodes.map(([, n]) => n).filter(isShown)
                .map(n => n.textContent).join("");
            (async () => {{ {script}
              $("report").textContent = JSON.stringify(report) }})()</script>"""
        copy.write_text(whole + test, encoding="utf-8")
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={copy.parent}/profile",
        ]
        command += [
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--window-size=1200,900",
            "--dump-dom",
        ]
        ran = subprocess.run(
            [*command, copy.as_uri()], capture_output=True, text=True, timeout=120, encoding="utf-8"
        )
        assert ":CONSOLE" not in ran.stderr, ran.stderr
        found = re.search(r'<pre id="report">(.*?)</pre>', ran.stdout, re.S)
        assert found and found[1], ran.stdout[-2000:] + ran.stderr
        return json.loads(html.unescape(found[1]))

    return call


def test_the_page_shows_the_sampled_text_and_executes_none_of_it(told, in_browser):
    path, drawn = told
    r = in_browser("""
        go(end);
        report.names = [...document.querySelectorAll("h2")].map(h => h.textContent);
        report.texts = runs.map(visible);
        report.dom = [...document.querySelectorAll(".text")].map(t => { const c = t.cloneNode(true);
            c.querySelectorAll("del").forEach(d => d.remove()); return c.textContent });
        report.images = document.images.length;
        report.legend = $("plot").textContent.includes("<b>teacher</b>");
        report.bold = document.querySelectorAll("b").length;
        report.foreign = [...document.querySelectorAll("[src],[href]")].length""")
    assert r["names"][: len(drawn)] == list(drawn)
    assert r["texts"] == r["dom"] == list(drawn.values())
    assert all(any(evil in text for text in r["texts"]) for evil in EVIL)
    assert all(text.startswith("aé") for text in r["texts"])
    assert r["images"] == r["foreign"] == r["bold"] == 0 and r["legend"]
    assert os.path.getsize(path) < 100_000
    with open(path, encoding="utf-8") as f:
        addresses = set(re.findall(r"\w+://[\w./]+", f.read()))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a request


def test_play_pause_step_slider_and_keyboard(in_browser):
    r = in_browser("""
        report.playing = [playing]; press(" "); report.playing.push(playing);
        press("Home"); report.start = [now, runs.map(visible)];
        $("step").click(); report.step = [now, runs.map(run => run.shown)];
        press("ArrowRight"); report.two = now;
        press("ArrowLeft"); report.back = now; $("back").click(); report.zero = now;
        press("End"); report.end = [now, $("time").value, runs.map(run => run.shown)];
        $("time").value = moments[2]; $("time").dispatchEvent(new Event("input"));
        report.slid = [now, $("clock").textContent];
        $("slow").value = 1000; $("slow").focus(); press(" ", $("slow")); report.own = playing;
        press("+"); press("-"); report.slow = $("slow").value;
        const before = now; $("play").click(); report.label = $("play").textContent;
        for (let i = 0; i < 60 && now === before; i++) await frame();
        $("play").click(); report.moved = now > before && now < end;
        const paused = now; await frame(); report.still = now === paused;
        $("slow").value = 1; $("play").click();
        for (let i = 0; i < 60 && playing; i++) await frame();
        report.finished = [playing, now === end, $("play").textContent];
        press("n"); press("r"); report.classes = document.body.className;
        report.end_ms = end; report.moments = moments""")
    assert r["playing"] == [True, False] and r["start"] == [0, ["aé"] * 3]
    first, second = r["moments"][1:3]
    assert r["step"][0] == first > 0 and sorted(r["step"][1]) == [0, 0, 1]
    assert r["two"] == second and r["back"] == first and r["zero"] == 0
    assert r["end"][0] == float(r["end"][1]) == r["end_ms"]
    assert r["end"][2][0] == 62 and r["end"][2][2] == 4
    shown, *rest = r["slid"][1].split()
    assert r["slid"][0] == second and rest[0] == "of"
    assert abs(float(shown) - second) < 0.06  # a half is rounded up
    assert not r["own"] and r["slow"] == "500"
    assert r["label"] == "Pause" and r["moved"] and r["still"]
    assert r["finished"] == [False, True, "Play"] and r["classes"] == "numbers"


def test_every_token_says_which_step_wrote_it_and_which_were_drafted(in_browser):
    r = in_browser("""
        report.runs = runs.map(({ step_of, drafts, ms }) => ({ step_of, drafts, ms }));
        const nodes = f => runs.map(run => run.nodes.map(([, n]) => n).filter(f));
        const spans = nodes(n => n.tagName === "SPAN");
        report.seen = spans.map(all => all.map(n => n.dataset.step ?? "0"));
        report.drafted = nodes(n => n.classList.contains("accepted")).map(all => all.length);
        report.rejected = nodes(n => n.tagName === "DEL").map(all => all.length);
        const colors = runs[2].nodes.map(([, n]) => n.style.background).filter(Boolean);
        report.colors = new Set(colors).size;
        go(end); report.status = runs[1].status.textContent;
        toggle("rejected");
        report.hidden = [...document.querySelectorAll(".text del")].every(d => !d.offsetWidth)""")
    gpt, drafted, diffusion = r["runs"]
    assert r["seen"] == [[str(k) for k in run["step_of"]] for run in r["runs"]]
    assert gpt["step_of"] == [0, 0, *range(1, 63)]
    assert sorted(set(diffusion["step_of"])) == [0, 1, 2, 3, 4]
    assert r["colors"] == 4
    assert all(run["ms"] == sorted(run["ms"]) and run["ms"][0] > 0 for run in r["runs"])
    accepted = sum(a for a, _ in drafted["drafts"].values())
    # a round writes what it accepts, and a token of its own
    assert accepted + len(drafted["ms"]) == 62
    assert r["drafted"] == [0, accepted, 0] and accepted > 0  # its own drafter: all of them
    rejected = sum(bool(rest) for _, rest in drafted["drafts"].values())
    assert r["rejected"] == [0, rejected, 0] and r["hidden"]
    assert f"drafts: {accepted} accepted, {r['rejected'][1]} rejected" in r["status"]


def test_a_narrow_screen_has_one_column_and_no_sideways_scrolling(told, in_browser):
    with open(told[0], encoding="utf-8") as f:
        source = json.dumps(f.read()).replace("<", "\\u003c")
    r = in_browser(f"""
        for (const width of [320, 1100]) {{
            const style = `width: ${{width}}px; height: 800px; border: 0`;
            const inner = make("iframe", document.body, {{ style }});
            inner.srcdoc = {source};
            await new Promise(done => inner.onload = done);
            const root = inner.contentDocument.documentElement;
            const left = [...root.querySelectorAll("article")].map(card => card.offsetLeft);
            report[width] = [root.scrollWidth - root.clientWidth, new Set(left).size];
        }}""")
    assert r == {"320": [0, 1], "1100": [0, 3]}


def test_a_recording_of_the_page_has_the_same_text(told, tmp_path):
    path, drawn = told
    R.main(path, str(tmp_path / "page.svg"))
    svg = (tmp_path / "page.svg").read_text(encoding="utf-8")
    texts = [
        e.text
        for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        if e.get("textLength")
    ]
    bare = lambda text: sorted(c for c in text if c.strip())  # noqa: E731
    assert bare("".join(texts)) == bare("".join(drawn.values()))
    assert "<script" not in svg and "<img" not in svg


def test_a_text_is_named_by_what_wrote_it():
    model = tiny_model()
    knobs = types.SimpleNamespace(sampler="", steps=0)
    made_for = {"made_for": {"steps": 1, "sampler": "spread"}}
    assert page.name_of(model, made_for, knobs) == "SDTT student, 1 step"
    assert page.name_of(model, {}, knobs) == "masked diffusion, 64 steps"
    knobs.steps = 4
    assert page.name_of(model, made_for, knobs) == "SDTT student, 4 steps"
    assert page.name_of(tiny_model(causal=True, arch="lstm"), {}, knobs) == "LSTM"
    assert page.name_of_drafter(NGram(2, 5)) == "n-gram"
    assert page.name_of_drafter(Lookup(5)) == "lookup"


def test_a_recording_breaks_lines_where_the_text_does_and_at_its_edge():
    assert R.placed(["ab", " cd", "e\nf", "123456789"], 6) == [
        [(0, 0, "ab")],
        [(0, 2, " cd")],
        [(0, 5, "e"), (1, 0, "f")],
        [(2, 0, "123456"), (3, 0, "789")],
    ]
    assert R.placed(["abcd", "efg", "", "h"], 6) == [
        [(0, 0, "abcd")],
        [(1, 0, "efg")],
        [],
        [(1, 3, "h")],
    ]


def test_tokens_that_share_a_character_are_joined():
    text = "a\u4e16é!"
    decode = lambda ids: bytes(ids).decode(errors="replace")  # noqa: E731
    assert page.split_text(list(text.encode()), decode) == ["a", "", "", "\u4e16", "", "é", "!"]
    assert page.split_text([195], decode) == ["\N{REPLACEMENT CHARACTER}"]


def test_words_keep_the_spaces_that_a_tokenizer_strips_at_the_beginning():
    words = [" a", " cat", "s", " sat"]
    decode = lambda ids: "".join(words[i] for i in ids).removeprefix(" ")  # noqa: E731
    assert page.split_text([0, 1, 2, 3], decode) == ["a", " cat", "s", " sat"]
    events = [(0.0, [0], None), (0.1, [0, 1, 2], [1, 3])]
    assert page.drafts_of_steps(1, events, decode) == {1: [1, [" sat"]]}


def write(ids):
    return "".join(map(str, ids))


def test_what_was_seen_of_a_diffusion_model_is_when_its_tokens_came():
    model = tiny_model(V=7, causal=False)
    template = torch.full((12,), -1)
    template[5] = 3
    recorder = page.Recorder(template)
    xt = template[None].masked_fill(template < 0, model.mask_id)
    x = unmask(model, xt, 4, "spread", generator=seeded(1), watch=recorder)
    run = page.page_entry(x[0].tolist(), recorder.events, write, model.mask_id)
    assert run["step_of"][5] == 0 and "".join(run["pieces"]) == write(x[0].tolist())
    for step, (_, seen, _) in enumerate(recorder.events[1:], 1):
        shown = [s <= step for s in run["step_of"]]
        assert shown == [token != model.mask_id for token in seen]
    assert run["drafts"] == {} and run["masks"] and len(run["ms"]) == 4


def test_what_was_seen_of_a_gpt_is_what_it_wrote():
    target = tiny_model(V=7, causal=True)
    recorder = page.Recorder(torch.tensor([2, 5] + [-1] * 12))
    idx = torch.tensor([[2, 5]])
    x = generate(target, idx, 12, generator=seeded(3), eos=0, watch=recorder)[0]
    n = sample.text_end(x, 2, 0)
    run = page.page_entry(x[:n].tolist(), recorder.events, write, None)
    assert "".join(run["pieces"]) == write(x[:n].tolist()) and not run["masks"]
    assert run["step_of"] == [0, 0, *range(1, n - 1)] and run["drafts"] == {}


def test_what_was_seen_of_speculation_is_what_it_wrote_and_what_was_rejected():
    target = tiny_model(V=7, causal=True)
    drafter = tiny_model(V=7, causal=True, seed=1)
    n_accepted = 0
    for seed in range(20):
        recorder = page.Recorder(torch.tensor([2, 5] + [-1] * 12))
        rounds = metrics.Rounds(3)
        rounds.start(2)
        for watch in (recorder, rounds):
            idx = torch.tensor([2, 5])
            options = dict(gamma=3, generator=seeded(seed), eos=0, watch=watch)
            x = speculate(target, Network(drafter), idx, 12, **options)
        n = sample.text_end(x, 2, 0)
        run = page.page_entry(x[:n].tolist(), recorder.events, write, None)
        assert "".join(run["pieces"]) == write(x[:n].tolist()) and run["step_of"][:2] == [0, 0]
        assert run["step_of"] == sorted(run["step_of"])
        assert run["step_of"][2:3] == [1] * (n > 2)  # the first may be the end of the text
        assert sum(a for a, _ in run["drafts"].values()) == rounds.accepted.sum()
        assert len(run["ms"]) == rounds.n_forwards
        n_accepted += int(rounds.accepted.sum())
        for step, (n_accepted_here, rest) in run["drafts"].items():
            written = run["step_of"].count(step)
            assert 1 <= written <= n_accepted_here + 1 or step == len(run["ms"])
            assert len(rest) <= 3 - n_accepted_here
    assert n_accepted > 0


def test_a_model_is_shown_by_its_name_not_its_path():
    assert page.label_of("out/pydoc_ar/ckpt.pt") == "pydoc_ar"
    assert page.label_of("out/sdtt_pydoc/round_12.pt") == "sdtt_pydoc, round 12"
    assert page.label_of("out/pydoc_ngram/ngram.txt") == "pydoc_ngram"
    for name in ("sdtt:kld:7", "lookup", "real text", "hf:me/mine", "mine.pt"):
        assert page.label_of(name) == name.removesuffix(".pt")


def test_a_page_without_its_plot_raises_before_sampling(tmp_path, error_of):
    assert "none.json holds no frontier" in error_of(page.load_frontier, "none.json")
    data.atomic_write(tmp_path / "e.json", b'{"rows": []}')
    assert "eval.py --what=frontier" in error_of(page.load_frontier, str(tmp_path / "e.json"))


def test_mistakes_write_no_page(tmp_path, error_of):
    path = str(tmp_path / "d.pt")
    save_tiny(path, EVIL, causal=False)
    out = str(tmp_path / "page.html")
    for words, knobs in {
        "all of --ckpt are diffusion models": {"draft": "lookup"},
        "no frontier": {"frontier": "none.json"},
        "top_p is 2": {"top_p": 2.0},
        "has no": {"prompt": "\u4e16"},
    }.items():
        assert words in error_of(page.main, settings(page, ckpt=path, out=out, **knobs))
    target = str(tmp_path / "ar.pt")
    save_tiny(target, EVIL, causal=True, block_size=32)
    drafter = str(tmp_path / "small.pt")
    save_tiny(drafter, EVIL, causal=True, block_size=16)
    knobs = {"ckpt": target, "draft": drafter, "out": out}
    assert "small.pt's context" in error_of(page.main, settings(page, **knobs))
    assert not os.path.exists(out)


def test_the_page_has_a_command(tmp_path):
    save_tiny(str(tmp_path / "d.pt"), EVIL, causal=False)
    said, _ = run(
        "-m", "extras.page", f"--ckpt={tmp_path}/d.pt", "--steps=2", f"--out={tmp_path}/p.html"
    )
    assert "open it in a browser" in said and (tmp_path / "p.html").exists()
