"""Tests of chat templates that do what none should do."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from disagg_router.errors import ApiError
from disagg_router.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": f"{i}"} for i in range(100)]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) -%} {% for j in range(90000) if j %}x{% else %}y{% endfor %}{%- endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ 9999999999 * [1] }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(x=2) %}{% for i in range(999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_would_not_end_is_refused(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        ChatTemplate(source, {}).render(MESSAGES)
    assert caught.value.status == 400


@pytest.mark.parametrize("source", ["{{" + "(" * 5000 + "}}", "{% if x %}" * 3000, "{{ messages | nope }}"])
def test_what_does_not_compile_is_a_value_error(source: str) -> None:
    """Whatever the compiler raises."""
    with pytest.raises(ValueError, match=r"\w+: "):
        ChatTemplate(source, {})


def test_ordinary_templates_are_as_they_were() -> None:
    source = (
        "{{- bos_token }}\n{%- for m in messages %}\n  {%- if loop.index0 > 97 %}\n[{{ m['content'] }}]\n{% endif %}"
        "{% endfor %}"
        "{% for x in [2 * 3, 2 ** 3, 'a' * 3] %}{{ x }}{% if loop.first %}{% continue %}{% endif %},{% endfor %}"
    )
    assert ChatTemplate(source, {"bos_token": "<b>"}).render(MESSAGES) == "<b>[98]\n[99]\n68,aaa,"


def test_each_rendering_has_turns_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg_router.text.chat_template._MAX_TURNS", 100)
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(len(template.render(MESSAGES)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [190] * 3
    with pytest.raises(ApiError, match="too many turns"):
        template.render(MESSAGES * 2)
