from __future__ import annotations

import inspect

import archgrad as ag
from archgrad.supernets.nested import _Withheld
from archgrad.tasks import Checkable, PerSample, Splittable


def test_a_task_without_its_test_part_can_do_what_the_task_can() -> None:
    withheld = _Withheld(ag.Classification.load("digits"))
    for ability, name in ((Splittable, "split"), (PerSample, "losses"), (Checkable, "check")):
        assert isinstance(withheld, ability)
        # What `isinstance` of a Protocol looks at from Python 3.12 on.
        assert inspect.getattr_static(withheld, name)
    assert withheld.evaluate.__func__ is _Withheld.evaluate


def test_what_a_task_lacks_it_lacks_without_its_test_part() -> None:
    class Plain:
        pass

    assert not isinstance(_Withheld(Plain()), Splittable)  # type: ignore[arg-type]
