"""The Hub, against a real HTTP server that behaves as the Hub does; nothing here leaves the loopback address."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import close_session, constants

from kvcalc.errors import InputError, KVCalcError, NetworkError
from kvcalc.sources import hub
from kvcalc.sources.hub import Patience, fetch

TOKEN = "hf_very" + "secret" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"model_type": "llama", "hidden_size": 64}
IMPATIENT = Patience(quiet=0.05, answer=0.3, whole=1.0, busy=())


def weights_file(tensors: int, padding: int = 0) -> bytes:
    header = {
        f"w{each}": {"dtype": "BF16", "shape": [4], "data_offsets": [8 * each, 8 * each + 8]} for each in range(tensors)
    }
    text = json.dumps(header).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text + bytes(8 * tensors)


class Server(ThreadingHTTPServer):
    """Files by path; a function in place of a file answers by itself."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def sent(self, name):
        return [headers.get(name) for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        file = self.server.files.get(self.path)
        if file is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif callable(file):
            with suppress(OSError):  # a client that hangs up is what some tests are about
                file(self)
        else:
            self.send_ranged(file)

    def send_ranged(self, file, **headers):
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(200, file, {"X-Repo-Commit": COMMIT, **headers})
        first, last = wanted.removeprefix("bytes=").split("-")
        part = file[int(first) : int(last) + 1]
        if not part:
            return self.answer(416)
        span = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(file)}"}
        return self.answer(206, part, span | headers)

    def answer(self, code, body=b"", headers=None, length=None):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def redirect(url, code=302):
    return lambda handler: handler.answer(code, b"", {"Location": url})


def refuse(code, **headers):
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler: handler.answer(code, b'{"error": "no"}', named)


@pytest.fixture
def servers():
    started = []

    def start():
        started.append(Server())
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def session():
    """One session for all of these tests: it remembers the proxies of whoever asked first."""
    close_session()
    yield
    close_session()


@pytest.fixture
def site(servers, session, monkeypatch, tmp_path):
    """A Hub with one model of one file, and an environment that knows no other."""
    server = servers()
    server.files["/org/model/resolve/main/config.json"] = json.dumps(CONFIG).encode()
    server.files[f"/org/model/resolve/{COMMIT}/model.safetensors"] = weights_file(3)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    return server


def at_main(file):
    return f"/org/model/resolve/main/{file}"


def at_commit(file):
    return f"/org/model/resolve/{COMMIT}/{file}"


def refused(reference="hf:org/model", patience=IMPATIENT):
    """The error of a fetch: one sentence and a hint, with no token in anything that could be shown."""
    with pytest.raises(KVCalcError) as caught:
        fetch(reference, patience)
    error = caught.value
    assert "\n" not in error.message
    assert error.hint
    shown = [error]
    while shown[-1].__cause__ or shown[-1].__context__:
        shown.append(shown[-1].__cause__ or shown[-1].__context__)
    assert TOKEN not in " ".join(f"{each} {each!r} {each.args}" for each in shown)
    return error


def test_config_and_weights_come_from_headers_alone(site):
    model = fetch("hf:org/model")
    assert model.config == CONFIG
    assert model.weights.bytes_by_dtype == {"bfloat16": 24}
    assert model.weights.elements == 12
    assert model.source == f"hf:org/model#{COMMIT}"
    assert site.sent("Range")[-1] == "bytes=0-131071"


def test_a_revision_is_asked_for_by_name(site):
    site.files["/org/model/resolve/refs%2Fpr%2F7/config.json"] = b'{"model_type": "gemma"}'
    assert fetch("hf:org/model#refs/pr/7").config == {"model_type": "gemma"}


def test_many_files_are_read_by_their_index_and_a_long_header_in_two_ranges(site):
    site.files[at_commit("a.safetensors")] = weights_file(2, padding=200_000)
    site.files[at_commit("b.safetensors")] = weights_file(1).replace(b"w0", b"x0")
    placed = {"w0": "a.safetensors", "w1": "a.safetensors", "x0": "b.safetensors"}
    site.files[at_commit("model.safetensors.index.json")] = json.dumps({"weight_map": placed}).encode()
    weights = fetch("hf:org/model").weights
    assert (weights.bytes_by_dtype, weights.files) == ({"bfloat16": 24}, 2)
    ranges = {headers.get("Range") for path, headers in site.requests if path == at_commit("a.safetensors")}
    assert ranges == {"bytes=0-131071", f"bytes=131072-{len(site.files[at_commit('a.safetensors')]) - 17}"}


def test_the_token_goes_to_the_hub_and_to_no_other_host(site, servers):
    storage = servers()
    storage.files["/blob"] = weights_file(3)
    site.files[at_commit("model.safetensors")] = redirect(f"{storage.url}/blob?signature=1#", 302)
    storage.files["/blob?signature=1"] = storage.files["/blob"]
    assert fetch("hf:org/model").weights.elements == 12
    assert set(site.sent("Authorization")) == {f"Bearer {TOKEN}"}
    assert storage.sent("Authorization") == [None]
    assert storage.sent("Range") == ["bytes=0-131071"]


def test_a_redirect_on_the_same_host_keeps_the_token(site):
    site.files[at_main("config.json")] = redirect("/api/resolve-cache/models/org/model/config.json", 307)
    site.files["/api/resolve-cache/models/org/model/config.json"] = json.dumps(CONFIG).encode()
    fetch("hf:org/model")
    sent = {path: headers.get("Authorization") for path, headers in site.requests}
    assert sent["/api/resolve-cache/models/org/model/config.json"] == f"Bearer {TOKEN}"


def test_without_a_token_none_is_sent(site, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    fetch("hf:org/model")
    assert set(site.sent("Authorization")) == {None}


def test_a_model_without_safetensors_is_computed_and_says_so(site):
    del site.files[at_commit("model.safetensors")]
    model = fetch("hf:org/model")
    assert model.weights is None
    assert "no safetensors" in model.notes[0]


def test_a_server_without_ranges_is_read_no_further_than_needed(site):
    file = weights_file(2, padding=200_000) + b""

    def whole(handler):
        handler.answer(200, file)

    site.files[at_commit("model.safetensors")] = whole
    assert fetch("hf:org/model").weights.elements == 8


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        (refuse(401, X_Error_Code="GatedRepo"), "access to hf:org/model is restricted", "ask for access at"),
        (refuse(403, X_Error_Code="GatedRepo"), "access to hf:org/model is restricted", "ask for access at"),
        (refuse(403), "access to hf:org/model is restricted", "ask for access at"),
        (refuse(401, X_Error_Code="RepoNotFound"), "shows no model hf:org/model", "HF_TOKEN"),
        (refuse(401), "shows no model hf:org/model", "HF_TOKEN"),
        (refuse(404, X_Error_Code="RepoNotFound"), "shows no model hf:org/model", "HF_TOKEN"),
        (refuse(404, X_Error_Code="RevisionNotFound"), "no such revision", "behind the #"),
        (refuse(404, X_Error_Code="EntryNotFound"), "no such file: config.json", "GGUF"),
        (refuse(404), "no such file of hf:org/model, or no such model", "GGUF"),
        (refuse(429, Retry_After="37"), "too many requests", "in 37 seconds"),
        (refuse(429), "too many requests", "later"),
        (refuse(503), "HTTP status 503", "later"),
        (redirect("/org/model/resolve/main/config.json"), "does not answer as the Hub does", "HF_ENDPOINT"),
        (lambda handler: handler.answer(200, b"{", length=50), "cut off after 1 of 50 bytes", "try again"),
        (lambda handler: handler.wfile.write(b"what?\r\n\r\n"), "does not answer as the Hub does", "HF_ENDPOINT"),
        (lambda handler: time.sleep(0.6), "takes too long", "later"),
    ],
)
def test_every_refusal_is_one_sentence_and_a_hint(site, answer, message, hint):
    site.files[at_main("config.json")] = answer
    # A busy machine takes more than 0.3 seconds for an answer at times.
    error = refused(patience=IMPATIENT if message == "takes too long" else replace(IMPATIENT, answer=20, whole=30))
    assert isinstance(error, NetworkError)
    assert message in error.message
    assert hint in error.hint


def test_a_model_that_was_renamed_is_found_and_says_so(site):
    for file in (at_main("config.json"), at_commit("model.safetensors")):
        moved = file.replace("/org/model/", "/org/new-name/")
        site.files[moved] = site.files[file]
        site.files[file] = redirect(moved, 307)
    model = fetch("hf:org/model")
    assert model.weights.elements == 12
    assert model.notes == ("hf:org/model has been renamed: it is hf:org/new-name now",)


def test_a_busy_server_is_asked_again(site):
    config = site.files[at_main("config.json")]
    answers = [refuse(503), lambda handler: None, refuse(429), lambda handler: handler.send_ranged(config)]

    def answer(handler):
        answers.pop(0)(handler)

    site.files[at_main("config.json")] = answer
    assert fetch("hf:org/model", Patience(busy=(0, 0, 0))).config == CONFIG
    assert answers == []


@pytest.mark.parametrize(
    "endpoint",
    ["", "huggingface.co", "127.0.0.1:1", "http://127.0.0.1:99999", "http://[::1", "ftp://x", "http://\x1b[31m"],
)
def test_an_endpoint_that_is_no_web_address_is_one_error(site, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")  # it falls over where it is imported with some
    error = refused()
    assert isinstance(error, InputError)
    assert error.message.startswith("HF_ENDPOINT is no web address: '")
    assert "https://huggingface.co" in error.hint


def test_a_restricted_model_asks_for_a_token_where_there_is_none(site, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    site.files[at_main("config.json")] = refuse(401, X_Error_Code="GatedRepo")
    assert refused().hint == f"ask for access at {site.url}/org/model, then set HF_TOKEN"


def test_an_address_that_is_no_web_address_is_not_followed(site):
    site.files[at_main("config.json")] = redirect("ftp://127.0.0.1/config.json")
    with pytest.raises(NetworkError):
        fetch("hf:org/model", IMPATIENT)


def test_an_answer_without_end_is_ended(site):
    drops = []

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for drop in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            drops.append(drop)
            time.sleep(0.05)

    site.files[at_main("config.json")] = drip
    assert "takes too long" in refused(patience=replace(IMPATIENT, whole=0.4)).message
    assert len(drops) < 100  # it did not wait for the last one


@pytest.mark.parametrize("length", [2**23, None])
def test_an_answer_of_any_length_is_bounded(site, length):
    def flood(handler):
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for _ in range(2**23 // 2**16):
            handler.wfile.write(bytes(2**16))

    site.files[at_main("config.json")] = flood
    with pytest.raises(NetworkError, match="larger than"):
        fetch("hf:org/model")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "shorter than its header"),
        (b"\xff" * 100, "the header claims"),
        (weights_file(2)[:-1], "the file holds 15"),
        (b"\x02" + bytes(7) + b"[]", "not a JSON object"),
    ],
)
def test_a_bad_header_on_the_hub_is_one_error(site, file, reason):
    site.files[at_commit("model.safetensors")] = file
    with pytest.raises(KVCalcError, match=reason):
        fetch("hf:org/model")


@pytest.mark.parametrize("config", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_bad_config_on_the_hub_is_one_error(site, config):
    site.files[at_main("config.json")] = config
    with pytest.raises(InputError):
        fetch("hf:org/model")


@pytest.mark.parametrize(
    "reference",
    [
        "hf:",
        "hf:a/b/c",
        "hf:../x",
        "hf:org/model#",
        "hf:org/model#../../x",
        "hf:org/mo del",
        "hf:é/x",
        "hf:a/.",
        "hf:-/-",
        "hf:a/b--",
        "hf:a/b.git",
    ],
)
def test_what_is_no_name_of_a_model_reaches_no_network(site, reference):
    assert "write hf:org/name" in refused(reference).hint
    assert site.requests == []


def test_a_part_that_is_missing_on_the_hub_is_an_error_and_no_model_without_weights(site):
    index = json.dumps({"weight_map": {"w0": "gone.safetensors"}}).encode()
    site.files[at_commit("model.safetensors.index.json")] = index
    with pytest.raises(NetworkError, match="has no such file"):
        fetch("hf:org/model")


def test_a_failing_part_ends_the_reading(site):
    names = [f"model-{number}.safetensors" for number in range(40)]
    index = {"weight_map": {f"t{number}": name for number, name in enumerate(names)}}
    site.files[at_commit("model.safetensors.index.json")] = json.dumps(index).encode()
    for name in names:
        site.files[at_commit(name)] = refuse(503)
    assert "503" in refused().message
    assert len(site.requests) < 40


def test_a_token_that_cannot_be_sent_is_not_shown(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}é")
    error = refused()
    assert "characters" in error.message
    assert site.requests == []


def cached(folder, files, commit=COMMIT):
    """A model in the cache as huggingface_hub lays it out."""
    repository = folder / "cache" / "models--org--model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


OLD = {"config.json": b'{"model_type": "cached"}', "model.safetensors": weights_file(1)}


def test_offline_answers_from_the_cache_or_not_at_all(site, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the local cache" in refused().message
    cached(tmp_path, OLD)
    model = fetch("hf:org/model")
    assert model.config == {"model_type": "cached"}
    assert model.weights.elements == 4
    assert site.requests == []


def test_a_cached_model_without_its_weights_is_computed_and_says_so(site, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path, {"config.json": OLD["config.json"]})
    model = fetch("hf:org/model")
    assert model.weights is None
    assert "does not hold all weights" in model.notes[0]


def test_a_commit_in_the_cache_needs_no_network_and_a_branch_is_asked_anew(site, tmp_path):
    cached(tmp_path, OLD)
    assert fetch(f"hf:org/model#{COMMIT}").config == {"model_type": "cached"}
    assert site.requests == []
    assert fetch("hf:org/model").config == CONFIG


def test_without_a_connection_the_cache_answers_and_says_so(site, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    error = refused()
    assert "no connection to" in error.message
    cached(tmp_path, OLD)
    model = fetch("hf:org/model", IMPATIENT)
    assert model.config == {"model_type": "cached"}
    assert "no connection" in model.notes[-1]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refused()
    assert "needs the package huggingface_hub" in error.message
    assert error.hint == "pip install 'kvcalc[hub]'"


def test_progress_is_shown_when_it_takes_longer_than_a_moment(site, capsys):
    def slow(handler):
        time.sleep(0.15)
        handler.send_ranged(json.dumps(CONFIG).encode())

    fetch("hf:org/model", Patience(quiet=5))
    assert capsys.readouterr().err == ""
    site.files[at_main("config.json")] = slow
    fetch("hf:org/model", Patience(quiet=0.05))
    captured = capsys.readouterr()
    assert captured.err == f"reading hf:org/model from {site.url.removeprefix('http://')} ...\n"
    assert captured.out == ""


def test_the_environment_says_where_the_hub_is_and_who_asks(site, tmp_path):
    code = "from kvcalc.sources.hub import fetch; print(fetch('hf:org/model').weights.elements)"
    environment = os.environ | {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_of_the_environment"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "12\n"
    assert set(site.sent("Authorization")) == {"Bearer hf_of_the_environment"}


def test_the_model_of_the_hub_is_that_of_its_config_with_the_weights_of_its_files(site, monkeypatch):
    from kvcalc.sources.preset import load_preset

    asked = []

    def read_config(config, name):
        asked.append((config, name))
        return load_preset("gemma-3-1b")

    monkeypatch.setattr(hub, "read_config", read_config)
    model = hub.load_from_hub("hf:org/model")
    assert asked == [(CONFIG, "org/model")]
    assert model.provenance.weight_bytes == {"bfloat16": 24}
    assert any("hold 12 numbers" in note for note in model.provenance.notes)


LLAMA = CONFIG | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize(
    ("answer", "expected"), [(json.dumps(LLAMA).encode(), 0), (refuse(401), 2), (refuse(503), 2), (b"{", 2)]
)
def test_no_command_shows_or_writes_the_token(site, monkeypatch, capsys, tmp_path, answer, expected, debug):
    from kvcalc.cli.app import run

    monkeypatch.setenv("KVCALC_DEBUG", debug)
    monkeypatch.setattr(hub, "Patience", lambda: IMPATIENT)
    site.files[at_main("config.json")] = answer
    written = tmp_path / "answer.json"
    code = run(["show", "hf:org/model", "-c", "1k", "--explain", "--format", "json", "-o", str(written)])
    captured = capsys.readouterr()
    assert f"Bearer {TOKEN}" in site.sent("Authorization")
    assert (code, written.exists()) == (expected, expected == 0)
    for shown in (captured.out, captured.err, *(file.read_text() for file in tmp_path.rglob("*") if file.is_file())):
        assert TOKEN not in shown


def test_no_traceback_shows_the_token_even_with_the_values_of_its_variables(site, monkeypatch, capsys):
    import traceback

    from kvcalc.cli.app import run
    from kvcalc.sources.resolve import load

    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(hub._Repository, "body", fail)
    with pytest.raises(RuntimeError) as caught:
        load("hf:org/model")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    text = "".join(shown.format())
    assert "in answer" in text
    assert TOKEN not in text
    for debug in ("", "1"):
        monkeypatch.setenv("KVCALC_DEBUG", debug)
        assert run(["show", "hf:org/model", "-c", "1k"]) == 2
        printed = capsys.readouterr()
        assert ("Traceback" in printed.err) == bool(debug)
        assert TOKEN not in printed.out + printed.err
