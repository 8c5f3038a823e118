"""`python -m training.shipped.everyday`: fit the heads of everyday-small and write its checkpoint.

    python -m training.shipped.everyday --coco coco-mini --products fashion-products --out runs/everyday

Wants the extras `train` and `everyday`. coco-mini: a folder with `annotations/` and `train2017/` of COCO 2017, or a
part of it; fashion-products: a folder with captions.csv (image, caption, baseColour) and its pictures. Features are
kept in `--out`/features, so a second run takes two minutes. Nothing held out is opened.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.fashion import ARTICLE_TYPES
from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from training.aligned_config import AlignedConfig
from training.config import MixedData, TrainConfig, load_config
from training.data.sentence_vocabulary import SentenceTokenizer, sentence_tokenizer
from training.models.aligned import AlignedDualEncoder
from training.models.building import image_spec
from training.models.pretrained import class_texts, start_from_pretrained
from training.shipped.aligned_checkpoint import save_aligned
from training.shipped.everyday.looking import F32, TextVectors, features, unit_rows
from training.shipped.everyday.photograph_head import Examples, Scaling, class_pictures, fit_ridge
from training.shipped.everyday.pictures import (
    CROPS,
    REDUCED_CROPS,
    BoxedThing,
    CaptionedPhotograph,
    ShopProduct,
    boxed,
    crops,
    drawn_scenes,
    read_photographs,
    read_shop,
    reduced_crops,
    whole,
)
from training.shipped.everyday.product_head import (
    ProductHead,
    Products,
    ShownPictures,
    Told,
    TrainingSet,
    train_product_head,
)

RECIPE = Path(__file__).with_name("model.toml")
# Chosen on the photographs of train2017 by folds, and on the products of the validation split.
_CLASS_WEIGHT, _BOX_WEIGHT, _RIDGE = 3.0, 0.3, 3000.0
_GATE_SHIFT = -3.0
_LEAST_COLOUR = 20  # products of the training split
_TEMPLATES = ("{}", "a photo of a {}", "a {}")


class Recipe:
    """The model with its pretrained parts, its data, and the features of all of it."""

    def __init__(self, config: TrainConfig, coco: Path, products: Path, out: Path) -> None:
        if not isinstance(config.model, AlignedConfig) or not isinstance(config.data, MixedData):
            raise ValueError("expected the recipe of an aligned model with a table and scenes")
        if config.model.class_map is not None and config.model.class_map.merged is not None:
            raise ValueError("class_map.merged is not known here: its captions are those of single classes")
        self.config, self.aligned, self.data, self.kept = config, config.model, config.data, out / "features"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.sentences: SentenceTokenizer = sentence_tokenizer(config.model.text)
        self.tokenizer = Tokenizer(self.sentences.spec, self.sentences.file)
        self.spec: ImageSpec = image_spec(config.model)
        torch.manual_seed(config.seed)
        self.model = AlignedDualEncoder(config.model, vocab_size=self.sentences.spec.vocab_size).eval()
        start_from_pretrained(
            self.model,
            config.model,
            lambda texts: self.tokenizer.pad([self.tokenizer.encode(text) for text in texts]),
            kept_ids=self.sentences.kept_ids,
            captions=(),
        )
        self.model.requires_grad_(False)
        self.texts = TextVectors(self.model, self.tokenizer)
        self.photographs, self.things = read_photographs(coco)
        self.shop = read_shop(products, config.data.table.split)
        self.pooled = self.model.trunk.head_hidden_size

    def look(self) -> dict[str, F32]:
        """Features of every set of pictures, by name."""
        side, spec = self.spec.height_px, self.spec
        scenes, self.scene_captions = drawn_scenes(self.data.scenes)
        sets = {
            "photographs": whole([each.path for each in self.photographs], spec),
            "crops": crops(self.photographs, side),
            "reduced-crops": reduced_crops(self.photographs, side),
            "boxes": boxed(self.photographs, self.things, side),
            "products": whole([each.path for each in self.shop], spec),
            "scenes": iter(scenes),
        }
        found: dict[str, F32] = {}
        for name, pictures in sets.items():
            found[name] = features(self.model, pictures, self.kept / f"{name}.npy")
            print(f"{name}: {len(found[name])} pictures", flush=True)
        return found

    def class_vectors(self) -> F32:
        """[K, D]."""
        if self.model.class_map is None:
            raise ValueError("the recipe has no class_map")
        return self.model.class_map.vectors.numpy()

    def class_rows(self) -> F32:
        return self.model.trunk.get_classifier().weight.numpy()


def fit_photograph_head(recipe: Recipe, seen: dict[str, F32]) -> None:
    """Puts the ridge regression into the model's class map."""
    inner = {name: rows[:, : recipe.pooled] for name, rows in seen.items()}
    scaling = Scaling.of(np.concatenate([inner["crops"], inner["reduced-crops"]]))
    captions = np.stack([unit_rows(recipe.texts.of(each.captions).mean(axis=0)) for each in recipe.photographs])
    things = recipe.texts.of([f"a photo of a {each.name}" for each in recipe.things])
    captions, things = captions - captions.mean(axis=0), things - things.mean(axis=0)
    length = float(np.linalg.norm(scaling(inner["photographs"]), axis=1).mean())
    examples = [
        Examples(scaling(inner["crops"]), captions.repeat(CROPS, axis=0), 0.5 / CROPS),
        Examples(scaling(inner["reduced-crops"]), captions.repeat(REDUCED_CROPS, axis=0), 0.5 / REDUCED_CROPS),
        Examples(scaling(inner["boxes"]), things, _BOX_WEIGHT),
        Examples(class_pictures(recipe.class_rows(), scaling, length=length), recipe.class_vectors(), _CLASS_WEIGHT),
    ]
    solved = fit_ridge(examples, strength=_RIDGE)
    weight, bias = scaling.folded(solved.T, np.zeros(solved.shape[1], dtype=np.float32))
    linear = None if recipe.model.class_map is None else recipe.model.class_map.linear
    if linear is None:
        raise ValueError("the recipe has no class_map.linear")
    linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})


def fit_product_head(recipe: Recipe, seen: dict[str, F32]) -> None:
    """Trains head and gate, and puts both into the model's head with the gate a little more shut."""
    scaling = Scaling.of(np.concatenate([seen["crops"], seen["products"][::4]]))
    shown = {name: ShownPictures(scaling(rows), _without_head(recipe.model, rows)) for name, rows in seen.items()}
    image = recipe.aligned.image
    if image.gate is None or recipe.model.head is None:
        raise ValueError("the recipe has no head with a gate")
    head: ProductHead = train_product_head(
        TrainingSet(
            products=_products(recipe, shown["products"]),
            photographs=_photographs(recipe.photographs, recipe.texts, shown["crops"]),
            reduced=shown["reduced-crops"],
            things=_things(recipe.things, recipe.texts, shown["boxes"]),
            scenes=Told(
                shown["scenes"],
                [recipe.texts.of(captions) for captions in recipe.scene_captions],
                np.arange(len(recipe.scene_captions)),
            ),
            classes=_classes(recipe, scaling, shown["photographs"]),
        ),
        recipe.config.optim,
        high=image.gate[1],
        drop=image.dropout,
        seed=recipe.config.seed,
        say=lambda line: print(line, flush=True),
    )
    with torch.no_grad():
        weight = torch.cat([head.linear.weight, head.gate.weight]).numpy()
        bias = torch.cat([head.linear.bias, head.gate.bias + _GATE_SHIFT]).numpy()
        weight, bias = scaling.folded(weight, bias)
        recipe.model.head.out.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        recipe.model.logit_scale.copy_(head.log_scale)


def _without_head(model: AlignedDualEncoder, rows: F32) -> F32:
    """[n, D] of length 1: what class map and photograph head say."""
    if model.class_map is None:
        raise ValueError("the recipe has no class_map")
    x = torch.from_numpy(rows)
    logits = model.logits(x)
    if logits is None:
        raise ValueError("the recipe has no class_map")
    return unit_rows(model.class_map(logits, x[:, : model.trunk.head_hidden_size]).numpy())


def _products(recipe: Recipe, shown: ShownPictures) -> Products:
    shop, texts = recipe.shop, recipe.texts
    counted = Counter(each.colour for each in shop)
    colours, kinds = sorted(c for c, n in counted.items() if n >= _LEAST_COLOUR), sorted(ARTICLE_TYPES)
    named = {
        (each.colour, each.kind): texts.of(
            [form.format(f"{each.colour} {each.kind}") for form in ("{}", "a {}", "a photo of a {}")]
        )
        for each in shop
        if each.kind is not None
    }
    titles = texts.of([each.title for each in shop])
    return Products(
        shown=shown,
        titles=titles,
        named=[_named(each, named, title) for each, title in zip(shop, titles, strict=True)],
        colours=_numbers([each.colour for each in shop], colours),
        colour_vectors=_label_vectors(colours, texts),
        kinds=_numbers([each.kind for each in shop], kinds),
        kind_vectors=_label_vectors(kinds, texts),
    )


def _named(product: ShopProduct, named: dict[tuple[str, str], F32], title: F32) -> F32:
    return title[None] if product.kind is None else named[product.colour, product.kind]


def _numbers(values: Sequence[str | None], classes: Sequence[str]) -> NDArray[np.int64]:
    """-1 for what is no class."""
    where = {name: number for number, name in enumerate(classes)}
    return np.array([-1 if value is None else where.get(value, -1) for value in values])


def _label_vectors(labels: Sequence[str], texts: TextVectors) -> F32:
    """[K, D] of length 1, the mean over the templates."""
    return unit_rows(np.sum([texts.of([form.format(label) for label in labels]) for form in _TEMPLATES], axis=0))


def _photographs(photographs: Sequence[CaptionedPhotograph], texts: TextVectors, shown: ShownPictures) -> Told:
    return Told(shown, [texts.of(each.captions) for each in photographs], np.arange(len(photographs)))


def _things(things: Sequence[BoxedThing], texts: TextVectors, shown: ShownPictures) -> Told:
    names = sorted({each.name for each in things})
    said = {name: texts.of([form.format(name) for form in ("{}", "a {}", "a photo of a {}")]) for name in names}
    return Told(shown, [said[each.name] for each in things], _numbers([each.name for each in things], names))


def _classes(recipe: Recipe, scaling: Scaling, photographs: ShownPictures) -> Told:
    """The trunk's classes: their rows as pictures, their captions as texts; nothing is known of the stages."""
    if recipe.aligned.class_map is None:
        raise ValueError("the recipe has no class_map")
    inner = Scaling(scaling.mean[: recipe.pooled], scaling.deviation[: recipe.pooled])
    length = float(np.linalg.norm(photographs.features[:, : recipe.pooled], axis=1).mean())
    rows = class_pictures(recipe.class_rows(), inner, length=length)
    pictures = np.zeros((len(rows), len(scaling.mean)), dtype=np.float32)
    pictures[:, : recipe.pooled] = rows
    captions = [recipe.texts.of(texts) for texts in class_texts(recipe.aligned.class_map)]
    return Told(ShownPictures(pictures, recipe.class_vectors()), captions, np.arange(len(rows)))


def save(recipe: Recipe, seen: dict[str, F32], out: Path) -> None:
    """The checkpoint, as `clipworks train` would have left it."""
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(seen[name]).data)
    save_aligned(
        out,
        recipe.model,
        config=recipe.config,
        image=recipe.spec,
        text=recipe.sentences.spec,
        tokenizer=recipe.sentences.file,
        templates=_TEMPLATES,
        data_digest=digest.hexdigest(),
        steps=recipe.config.optim.steps,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.everyday",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--coco", type=Path, required=True, help="folder with annotations/ and train2017/")
    parser.add_argument("--products", type=Path, required=True, help="folder with captions.csv and its pictures")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: that of everyday-small")
    parser.add_argument("--out", type=Path, default=Path("runs/everyday"), help="folder of the checkpoint")
    chosen = parser.parse_args(arguments)
    places = [f"data.table.folder={chosen.products}", f"run.folder={chosen.out}"]
    try:
        recipe = Recipe(load_config(chosen.recipe, places), chosen.coco, chosen.products, chosen.out)
        seen = recipe.look()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    fit_photograph_head(recipe, seen)
    fit_product_head(recipe, seen)
    save(recipe, seen, chosen.out)
    print(f"logit scale {math.exp(float(recipe.model.logit_scale)):.2f}; checkpoint in {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
