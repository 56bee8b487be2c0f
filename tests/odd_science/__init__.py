"""Pipelines that misbehave, each in its own way: what a worker has to get along with."""

from __future__ import annotations

from guidehall.science.pipeline import Pipeline
from guidehall.science.registry import Science
from tests.odd_science.params import OddParams, OddResult

WAYS = (
    "break_down",
    "break_the_device",
    "burn",
    "complain_and_break",
    "exit_at_once",
    "fill_a_folder",
    "fill_a_file",
    "leave_a_program",
    "leave_a_thread",
    "leave_unasked",
    "lend_the_link",
    "litter",
    "print_much",
    "need_less_memory",
    "refuse",
    "return_too_much",
    "show_environment",
    "show_previews",
    "show_the_unspeakable",
    "sleep_on",
    "spawn_and_sleep",
    "use_memory",
    "use_processor",
)

SCIENCE = Science(
    name="odd",
    title="Odd",
    pipelines=tuple(
        Pipeline(
            name=f"odd.{way}",
            version="1",
            title=way.replace("_", " ").capitalize(),
            params=OddParams,
            result=OddResult,
            entry=f"tests.odd_science.ways:{way}",
            smaller="tests.odd_science.params:half_as_much" if way == "need_less_memory" else "",
        )
        for way in WAYS
    ),
)
