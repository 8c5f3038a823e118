"""`python -m training.shipped.everyday_tiny`: distil everyday-tiny from everyday-small and write its checkpoint.

    python -m training.shipped.everyday_tiny --coco coco-mini --products fashion-products --out runs/everyday-tiny

Wants the extras `train` and `everyday`; data as for `python -m training.shipped.everyday`. The teacher is a stored
artifact: its graphs answer for the pictures, the sentence encoder that its text tower is made of for the texts. Views
and what the teacher said of them are kept in `--out`/views. Nothing held out is opened.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator

from model_store.identity import sha256_file
from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from training.aligned_config import AlignedConfig, AlignedTextConfig
from training.aligned_sources import bert_shape
from training.config import MixedData, OptimConfig, TrainConfig, load_config
from training.config_table import ConfigTable
from training.data.sentence_vocabulary import SentenceTokenizer, sentence_tokenizer
from training.locations import located
from training.losses import unit
from training.models.aligned import AlignedDualEncoder
from training.models.bert import BertTower
from training.models.building import image_spec
from training.models.pretrained import class_texts, start_from_pretrained
from training.models.sentence_encoders import load_sentence_encoder
from training.shipped.aligned_checkpoint import save_aligned
from training.shipped.everyday.pictures import drawn_scenes, opened, read_photographs, read_shop
from training.shipped.everyday_tiny import image_student, text_student
from training.shipped.everyday_tiny.image_student import DividedTower, ViewShare, start_at_ridge, train_image_tower
from training.shipped.everyday_tiny.sentences import Sentences, whole_words
from training.shipped.everyday_tiny.text_student import train_text_tower
from training.shipped.everyday_tiny.views import PictureSet, SeenViews, seen_views, whole_pictures
from training.teachers import Teacher

RECIPE, LESSONS = Path(__file__).with_name("model.toml"), Path(__file__).with_name("lessons.toml")
_TEACHER = "artifact:everyday-small"
HELD_PHOTOGRAPHS = 5  # every fifth is for validation
_HELD_CLASSES = 10  # every tenth caption of a class
_SHOWN_PRODUCTS, _SHOWN_TEXTS = 400, 400  # of validation
_LEAST_SIMILAR = 0.99


class ViewCounts(ConfigTable):
    photographs: int = Field(ge=1)
    products: int = Field(ge=1)
    scenes: int = Field(ge=1)


class ViewShares(ConfigTable):
    """Their sum is 1."""

    photographs: float = Field(gt=0)
    products: float = Field(gt=0)
    scenes: float = Field(gt=0)

    @model_validator(mode="after")
    def _are_all(self) -> ViewShares:
        if not math.isclose(self.photographs + self.products + self.scenes, 1):
            raise ValueError("expected shares whose sum is 1")
        return self


class Lessons(ConfigTable):
    """text: steps of the text tower. kept_blocks: so many of the trunk are not trained. views: how many of each kind
    are drawn; shares: their parts of a batch.
    """

    kept_blocks: int = Field(ge=0)
    text: OptimConfig
    views: ViewCounts
    shares: ViewShares


class StudentRecipe:
    """The student with its pretrained parts, its teacher, and their data."""

    def __init__(
        self,
        config: TrainConfig,
        lessons: Lessons,
        *,
        teacher: Teacher,
        coco: Path,
        products: Path,
        out: Path,
    ) -> None:
        if not isinstance(config.model, AlignedConfig) or not isinstance(config.data, MixedData):
            raise ValueError("expected the recipe of an aligned model with a table and scenes")
        mapped = config.model.class_map
        if mapped is None or config.model.image.gate is None or config.model.image.head != "linear":
            raise ValueError("expected a student with a class map, and a linear head with a gate")
        image = config.model.image
        if mapped.linear or image.dropout or image.head_weights or config.optim.ema_decay or lessons.text.ema_decay:
            raise ValueError("class_map.linear, dropout, head_weights and ema_decay are not known here")
        self.templates = tuple(config.method_options.get("templates", ("{}",)))
        self.config, self.aligned, self.lessons, self.teacher = config, config.model, lessons, teacher
        self.folder, self.seed, self.classes = out / "views", config.seed, class_texts(mapped)
        self.sentences: SentenceTokenizer = sentence_tokenizer(config.model.text)
        self.tokenizer = Tokenizer(self.sentences.spec, self.sentences.file)
        self.spec: ImageSpec = image_spec(config.model)
        torch.manual_seed(config.seed)
        self.model = AlignedDualEncoder(config.model, vocab_size=self.sentences.spec.vocab_size).eval()
        self.encoder = self._sentence_encoder()
        self._start()
        self.photographs, _ = read_photographs(coco)
        table = config.data.table
        self.shop = read_shop(products, table.split)
        self.other_shop = read_shop(products, table.split, "validation")
        self.scenes, self.scene_captions = drawn_scenes(
            config.data.scenes.model_copy(update={"cache_px": teacher.size_px})
        )

    def teach_texts(self, say: Callable[[str], None]) -> None:
        held = range(0, len(self.photographs), HELD_PHOTOGRAPHS)
        captions = [text for texts in self.classes for text in texts]
        corpora = [
            [text for at, text in enumerate(captions) if at % _HELD_CLASSES],
            [each.title for each in self.shop],
            [text for at, each in enumerate(self.photographs) if at not in held for text in each.captions],
            [text for texts in self.scene_captions for text in texts],
        ]
        validation = {
            "classes": captions[::_HELD_CLASSES],
            "products": [each.title for each in self.other_shop[:_SHOWN_TEXTS]],
            "photographs": [text for at in held for text in self.photographs[at].captions],
        }
        words = whole_words(json.loads(self.sentences.file)["model"]["vocab"])
        train_text_tower(
            self.model.text,
            self.encoder,
            self.tokenizer,
            Sentences(corpora, words),
            validation,
            self.lessons.text,
            seed=self.seed,
            say=say,
        )

    def teach_pictures(self, say: Callable[[str], None]) -> str:
        """Returns the digest of what the teacher said."""
        views, shares, size = self.lessons.views, self.lessons.shares, self.spec.height_px
        tower = DividedTower(self.model, kept=self.lessons.kept_blocks)
        photographs = [_opening(each.path) for each in self.photographs]
        held = photographs[::HELD_PHOTOGRAPHS]
        learned = [each for at, each in enumerate(photographs) if at % HELD_PHOTOGRAPHS]
        shop = [_opening(each.path) for each in self.shop]
        drawn = [lambda row=row: Image.fromarray(row) for row in self.scenes]
        of_photographs = _files_digest([each.path for each in self.photographs])
        of_products = _files_digest([each.path for each in self.shop])
        of_scenes = hashlib.sha256(np.ascontiguousarray(self.scenes).data).hexdigest()
        sets = [
            PictureSet("photographs", learned, of_photographs, views.photographs, least=0.25, thumbnails=True),
            PictureSet("products", shop, of_products, views.products, least=0.7),
            PictureSet("scenes", drawn, of_scenes, views.scenes, least=0.7),
        ]
        others = {"photographs": sets[:2], "products": sets[1:2], "scenes": sets[2:]}
        seen: dict[str, ViewShare] = {}
        for each in sets:
            found = seen_views(
                each,
                others[each.name],
                self.teacher,
                tower.look,
                size_px=size,
                seed=self.seed,
                key=self._first_blocks(),
                folder=self.folder,
            )
            seen[each.name] = ViewShare(found, getattr(shares, each.name))
            say(f"{each.name}: {len(found)} views of {len(each.open)}")
        validation = {
            name: whole_pictures(PictureSet(name, pictures, "", 0, least=1.0), self.teacher, tower.look, size_px=size)
            for name, pictures in (
                ("photographs", held),
                ("products", [_opening(each.path) for each in self.other_shop[:_SHOWN_PRODUCTS]]),
            )
        }
        start_at_ridge(tower, seen, "products")
        train_image_tower(tower, seen, validation, self.config.optim, seed=self.seed, say=say)
        return _digest([each.views for each in seen.values()])

    def _first_blocks(self) -> str:
        """What the maps depend on beside the pictures."""
        image = self.aligned.image
        weights = sha256_file(located(image.weights))
        return f"{image.trunk} {weights} {image.mean} {image.std} {image.stages} {self.lessons.kept_blocks}"

    def _start(self) -> None:
        """Trunk and class map as they came, of the whole encoder's text vectors; the text tower as a part of it."""
        own = self.model.text
        self.model.text = self.encoder
        start_from_pretrained(
            self.model,
            self.aligned.model_copy(update={"text": self._whole_text()}),
            lambda texts: self.tokenizer.pad([self.tokenizer.encode(text) for text in texts]),
            kept_ids=self.sentences.kept_ids,
            captions=(),
        )
        self.model.text = own
        load_sentence_encoder(own, self.aligned.text, kept_ids=self.sentences.kept_ids)
        self.model.requires_grad_(False)
        self.model.logit_scale.copy_(self.teacher.model.logit_scale)
        self._compare_texts()

    def _whole_text(self) -> AlignedTextConfig:
        whole = {"layers": (), "hidden": None, "table_rank": None, "shape": None}
        return self.aligned.text.model_copy(update=whole)

    def _sentence_encoder(self) -> BertTower:
        """All of the sentence encoder that the student has a part of; its weights and its centre are to come."""
        shape = bert_shape(self._whole_text())
        length = self.aligned.text.context_length
        tower = BertTower(shape, vocab_size=self.sentences.spec.vocab_size, context_length=length)
        return tower.eval().requires_grad_(False)

    def _compare_texts(self) -> None:
        """Raises:
        ValueError: the teacher's text tower is another than the encoder.
        """
        asked = [texts[0] for texts in self.classes]
        same = self.teacher.text_vectors(torch.from_numpy(self.teacher.tokenize(asked)))
        near = float((unit(self.encoder(self._ids(asked))) * same).sum(dim=1).min())
        if near < _LEAST_SIMILAR:
            raise ValueError(
                f"{self.teacher.name} says something else of texts than {self.aligned.text.encoder} with these "
                f"classes: cosine {near:.3f}"
            )

    def _ids(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(self.tokenizer.pad([self.tokenizer.encode(text) for text in texts]))

    def save(self, said: str, out: Path) -> None:
        digest = hashlib.sha256(f"{said} {self.teacher.digest} {self.lessons.model_dump_json()}".encode()).hexdigest()
        save_aligned(
            out,
            self.model,
            config=self.config,
            image=self.spec,
            text=self.sentences.spec,
            tokenizer=self.sentences.file,
            templates=self.templates,
            data_digest=digest,
            steps=self.config.optim.steps,
            distillation=self.teacher.taught({**image_student.TERMS, **text_student.TERMS}),
        )


def _opening(path: Path) -> Callable[[], Image.Image]:
    return lambda: opened(path)


def _files_digest(paths: Sequence[Path]) -> str:
    """Of the files' names and sizes."""
    lines = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(seen: Sequence[SeenViews]) -> str:
    digest = hashlib.sha256()
    for each in seen:
        digest.update(each.vectors.tobytes())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.everyday_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--coco", type=Path, required=True, help="folder with annotations/ and train2017/")
    parser.add_argument("--products", type=Path, required=True, help="folder with captions.csv and its pictures")
    parser.add_argument("--teacher", default=_TEACHER, help="artifact:NAME of a store, or the folder of a checkpoint")
    parser.add_argument("--store", type=Path, help="where the teacher lies, if it is not the shipped one")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: that of everyday-tiny")
    parser.add_argument("--lessons", type=Path, default=LESSONS, help="default: those of everyday-tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/everyday-tiny"), help="folder of the checkpoint")
    chosen = parser.parse_args(arguments)
    places = [f"data.table.folder={chosen.products}", f"run.folder={chosen.out}"]
    try:
        recipe = StudentRecipe(
            load_config(chosen.recipe, places),
            Lessons.model_validate(tomllib.loads(chosen.lessons.read_text(encoding="utf-8"))),
            teacher=Teacher.open(chosen.teacher, store=chosen.store),
            coco=chosen.coco,
            products=chosen.products,
            out=chosen.out,
        )
        with ThreadPoolExecutor(2) as towers:  # which share nothing
            torch.set_num_threads(max(1, torch.get_num_threads() // 2))
            texts = towers.submit(recipe.teach_texts, _say)
            said = towers.submit(recipe.teach_pictures, _say).result()
            texts.result()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    recipe.save(said, chosen.out)
    print(f"checkpoint in {chosen.out}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
