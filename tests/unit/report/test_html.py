from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

from pipeline.base.values import SmokeCheck, SmokeResult
from pipeline.report import html
from tests.unit.report.rows import record, result

_VOID = {"meta", "br"}
_HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a page holds; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


ROWS = (
    result("onnx", p50_ms=1.0, per_s=1200, size_bytes=45_000_000, memory_bytes=74_000_000),
    result("int8", p50_ms=0.5, per_s=1900, size_bytes=11_000_000, precision="int8", accuracy=0.9766),
    result("trt", format="tensorrt", smoke=None, unmeasured="this machine has no GPU"),
    result("bad", accuracy=None, artifact=None, entry=None, smoke=None, error="parity[m_bad]: refused", exit_code=4),
)


def test_the_page_is_well_formed_and_shows_the_table_and_the_picks() -> None:
    page = Page(html.page(record(*ROWS, exit_code=4)))
    for words in (
        "m failed, exit 4",
        "for latency m_int8 0.500 ms, 2.0x faster than m_onnx, accuracy 97.66%",
        "for throughput m_int8 1900/s",
        "m_onnx onnx fp32 45.0 MB 98.00% – 1.00 2.00 1200 74.0 MB triton 1/1 1 ok",
        "m_trt tensorrt fp32 1.0 MB 98.00% – – – – – not run – 1 ok",
        "Not compared by speed: m_trt (this machine has no GPU)",
        "parity[m_bad]: refused",
        "source[m] 1.5 s",
        "python 3.11",
    ):
        assert words in page.text


def test_what_a_run_did_not_come_to_is_shown_as_not_made() -> None:
    never = result("onnx", accuracy=None, artifact=None, entry=None, smoke=None)
    page = Page(html.page(record(never, error="source[m]: cannot read m.onnx", exit_code=4)))
    assert "m_onnx onnx fp32 – – – – – – – not run – – not made" in page.text


def test_each_measured_variant_is_a_point_and_each_accurate_one_too() -> None:
    text = html.page(record(*ROWS))
    speed, accuracy = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert Page(speed).tags["circle"] == 2
    assert Page(accuracy).tags["circle"] == 3
    assert "m_int8: 0.500 ms, 1900/s" in Page(speed).text
    assert "m_int8: 11.0 MB, 97.66%" in Page(accuracy).text
    assert "int8 picked" in {value for _, name, value in Page(speed).attributes if name == "class"}


def test_nothing_measured_is_said_in_the_place_of_a_chart() -> None:
    page = Page(html.page(record(result("onnx", smoke=None, accuracy=None))))
    assert page.tags["svg"] == 0
    assert "nothing was measured" in page.text
    assert "no variant has both" in page.text


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs() -> None:
    text = html.page(record(*ROWS))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [item for item in page.attributes if item[1] in ("src", "href", "srcset") or item[1].startswith("on")]
    assert not re.search(r"//|@import|url\(", text)
    policy = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_texts_stay_texts() -> None:
    checks = (SmokeCheck(name=_HOSTILE, protocol="http", outcome="passed", detail=_HOSTILE),)
    hostile = replace(
        result("onnx", p50_ms=1.0, smoke=SmokeResult(model="m", checks=checks)),
        identifier=f"m_{_HOSTILE}", format=_HOSTILE, precision=_HOSTILE, server=_HOSTILE, notes=(_HOSTILE,),
    )  # fmt: skip
    wrong = result("bad", error=_HOSTILE, exit_code=4)
    page = Page(
        html.page(
            record(hostile, wrong, config=_HOSTILE, run_id=_HOSTILE, error=_HOSTILE, durations_s={_HOSTILE: 1.0},
                   environment={_HOSTILE: {_HOSTILE: [_HOSTILE]}})
        )
    )  # fmt: skip
    assert page.tags["script"] == 0
    assert page.text.count("{{ 7 * 7 }}") >= 12
    assert not any("alert" in value for _, name, value in page.attributes if name not in ("id", "d"))


def test_the_same_report_gives_the_same_page() -> None:
    assert html.page(record(*ROWS)) == html.page(record(*ROWS))


def test_a_run_that_ended_before_its_variants_has_a_page() -> None:
    page = Page(html.page(record(exit_code=3, error="this machine lacks what the build needs", durations_s={})))
    assert "m.yaml failed, exit 3" in page.text
    assert "this machine lacks what the build needs" in page.text
    assert "nothing to choose: no variant passed" in page.text
