"""Place of a single thing: "a red circle on the left", on the right, at the top or at the bottom?"""

from __future__ import annotations

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import said
from evaluation.scenes.contrasts import four_ways
from evaluation.scenes.meaning import Place, Where, place_of
from evaluation.scenes.scene import SceneError

OPPOSITE: dict[Where, Where] = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def build(pool: Pool) -> Quiz:
    """The same thing on the same background in all four places, so that each caption is right as often as any other."""
    questions: list[Question] = []
    groups = [group for groups in pool.class_groups for group in groups]
    for cluster, group in enumerate(groups):
        for scene in group.scenes:
            where = place_of(scene.things[0])
            if where is None or where == "middle":
                raise SceneError(f"scene {scene.seed}: the thing has no place at a side")
            right = Place(group.what, where)
            others = [said(other) for other in four_ways(right) if other != right]
            opposite = said(Place(group.what, OPPOSITE[where]))
            picture = Picture(scene)
            questions.append(question(picture, said(right), others, row="four places", cluster=cluster))
            questions.append(question(picture, said(right), [opposite], row="opposite places", cluster=cluster))
    return Quiz("place", tuple(questions))
