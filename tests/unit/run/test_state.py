"""The state of a run counts correctly through any steps, skips and rollbacks."""

from __future__ import annotations

import copy
import json

from hypothesis import given
from hypothesis import strategies as st

from ppar_dist.config.method_section import RefitConfig
from ppar_dist.run.state import TrainState, bad_counts

BATCH = 4


@given(st.lists(st.sampled_from(["step", "skip", "save", "back"]), max_size=60))
def test_the_position_is_steps_and_what_was_stepped_over(events: list[str]) -> None:
    state, saved = TrainState(), [TrainState()]
    furthest = 0
    for event in events:
        if event == "save":
            saved.append(TrainState.from_json(json.loads(json.dumps(state.to_json()))))
        elif event == "back":
            usable = [each for each in saved if each.step <= state.rollback_limit()]
            if not usable or not state.non_finite:
                continue
            state.roll_back(copy.deepcopy(usable[-1]))
            saved = [*usable[:-1], copy.deepcopy(state)]
        else:
            state.advance(BATCH, event == "step", {"day": BATCH}, {("day", "checksum"): 1})
        assert state.samples_seen == state.step * BATCH + state.stepped_over
        assert state.samples_seen >= furthest  # no position comes twice in a run's own history
        furthest = state.samples_seen
        assert state.non_finite <= len(state.skipped)


def test_counts_add_up_and_survive_json() -> None:
    state = TrainState()
    state.advance(4, True, {"day": 3, "rain": 1}, {("day", "label_id"): 2})
    state.advance(4, False, {"day": 4}, {("day", "label_id"): 1, ("day", "checksum"): 1})
    assert state.consumed == {"day": 7, "rain": 1}
    assert state.bad == {"day": {"label_id": 3, "checksum": 1}}
    assert (state.skipped, state.non_finite) == ([2], 1)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json() | {"total_steps": 9}))) == state


def test_a_bad_sample_of_several_epochs_counts_once_also_after_a_resume() -> None:
    state = TrainState()
    state.advance(4, True, {"day": 4}, {("day", "checksum"): 2}, [("day", 7), ("day", 2)])
    state = TrainState.from_json(json.loads(json.dumps(state.to_json())))
    state.advance(4, False, {"day": 4}, {("day", "checksum"): 2}, [("day", 7), ("rain", 7)])
    assert state.bad_samples == {"day": {2, 7}, "rain": {7}}
    assert state.bad == {"day": {"checksum": 4}}, "how often one was replaced"
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
    before = {name: value for name, value in state.to_json().items() if name != "bad_samples"}
    assert TrainState.from_json(before).bad_samples == {}, "of an earlier version"


def test_a_second_streak_right_after_a_rollback_goes_further_back() -> None:
    """The checkpoint that it went back to may itself cause the failed steps."""
    state = TrainState(step=9, samples_seen=36, non_finite=3)
    assert state.rollback_limit() == 6
    state.roll_back(TrainState(step=6, samples_seen=24))
    state.advance(BATCH, False, {}, {})
    assert state.rollback_limit() == 5
    state.advance(BATCH, True, {}, {})
    state.advance(BATCH, False, {}, {})
    assert state.rollback_limit() == 8


def test_sums_of_bad_samples_get_names_and_lose_zeros() -> None:
    sums = [[2.0, 0.0], [0.0, 1.0]]
    expected = {("a/b", "json"): 2, ("c", "label_id"): 1}
    assert bad_counts(sums, ["a/b", "c"], ["json", "label_id"]) == expected


def test_a_refit_is_lacking_at_another_step_and_with_other_options() -> None:
    state, asked = TrainState(step=7), RefitConfig(linear=True)
    assert not state.lacks_refit(RefitConfig())
    assert state.lacks_refit(asked)
    state.refitted = {"step": 7, **asked.model_dump()}
    again = TrainState.from_json(json.loads(json.dumps(state.to_json())))
    assert not again.lacks_refit(asked)
    assert again.lacks_refit(RefitConfig(linear=True, images=9))
    assert again.lacks_refit(RefitConfig(linear=True, prototypes=True))
    again.step = 8
    assert again.lacks_refit(asked)


def test_an_earlier_version_did_not_note_its_refit() -> None:
    """So it is not made again at the step where such a run ended."""
    old = TrainState(step=7).to_json()
    del old["refitted"]
    state = TrainState.from_json(old)
    assert not state.lacks_refit(RefitConfig(linear=True))
    state.step = 8
    assert state.lacks_refit(RefitConfig(linear=True))
