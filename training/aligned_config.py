"""Settings of the model kind "aligned": a pretrained trunk whose vectors are mapped to those of a sentence encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from training.config_table import ConfigTable

Centre = Literal["none", "classes", "captions"]
Storage = Literal["fp32", "fp16", "int8"]
TableStorage = Literal["fp32", "fp16", "int8"]


class AlignedImageConfig(ConfigTable):
    """weights: of the trunk with its classifier, a path or `package:NAME/FILE` (safetensors, or a torch file that holds
    tensors only). stages: of these feature maps the mean over positions is given to the head too; an index into the
    trunk's feature_info, or a module's name. gate: (low, high); the head's vector, of length 1, is multiplied by
    low + high * sigmoid of one more output of the head. head_weights: a safetensors file that the head starts from.
    """

    trunk: str = Field(description="name of a timm model")
    weights: str
    size_px: int = Field(ge=16)
    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stages: tuple[int | str, ...] = ()
    head: Literal["linear", "mlp", "none"] = "linear"
    hidden: int = Field(default=1024, ge=1, description="width of the mlp")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    gate: tuple[float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    head_weights: str = ""
    unit: bool = Field(default=False, description="the head's vector is brought to length 1 before it is added")


class ClassMapConfig(ConfigTable):
    """What the trunk's own classifier says, as a text vector: unit(softmax(logits / temperature) @ C) * weight, where
    the rows of C are the mean text vectors of the classes, of length 1. classes: "imagenet" for its names, or a text
    file of one class a line, in the order of the logits, several texts of one with semicolons between. linear: if not
    0, unit(mixture + linear * unit(A f + b)) in the place of the mixture, f the pooled features of the trunk.
    merged: the classes are reduced to this number, by merging the most similar ones.
    """

    classes: str = "imagenet"
    template: str = "a photo of a {}."
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    linear: float = Field(default=0.0, ge=0, exclude_if=lambda value: value == 0)
    merged: int | None = Field(default=None, ge=2, exclude_if=lambda value: value is None)
    count: int | None = Field(default=None, ge=1, description="of the classes; filled in when a recipe is read")

    @model_validator(mode="after")
    def _has_a_place(self) -> ClassMapConfig:
        if self.template.count("{}") != 1:
            raise ValueError("template needs exactly one {}")
        return self


class BertConfig(ConfigTable):
    """The shape of a BERT encoder, as its config.json says; filled in when a recipe is read.

    table_rank: the token embeddings are the product of a table of so many columns and a matrix (Lan et al., 2020).
    """

    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    hidden: int = Field(ge=1)
    norm_epsilon: float = Field(gt=0)
    table_rank: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)


class AlignedTextConfig(ConfigTable):
    """encoder: folder (or `package:NAME/FOLDER`) of a BERT sentence encoder with mean pooling: config.json,
    model.safetensors, tokenizer.json. centre: which texts' mean vector is subtracted. layers: which are kept, all when
    empty. hidden: so many units of each layer's MLP are kept, those with the largest product of the norms of their
    ingoing and outgoing weights. table_rank: as of BertConfig. A tower that has only a part of its encoder is to be
    trained before it says anything of use. vocabulary: a text file, only tokens that its lines need are kept, and those
    of single characters; or "ascii", for the tokens of ASCII characters. table: how an exported artifact keeps the
    token embeddings; int8 has a scale for each token. matrices: the same of the layers, where it is not as the model's
    `storage`; int8 has a scale for each output.
    """

    encoder: str
    context_length: int = Field(default=64, ge=4)
    centre: Centre = "none"
    layers: tuple[int, ...] = ()
    hidden: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)
    table_rank: int | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)
    vocabulary: str = ""
    table: TableStorage = "fp32"
    matrices: Literal["int8"] | None = Field(default=None, exclude_if=lambda value: value is None)
    shape: BertConfig | None = None


class AlignedConfig(ConfigTable):
    """image vector = class map + head; text vector = unit mean-pooled vector - centre; both of the encoder's width.

    storage: how the exported fp32 graphs keep their other weights; int8 is of the image tower's matrices and
    convolutions, with a scale for each output, and halves of the rest. What is rounded is rounded in the torch model
    too.
    """

    kind: Literal["aligned"]
    storage: Storage = "fp32"
    image: AlignedImageConfig
    class_map: ClassMapConfig | None = None
    text: AlignedTextConfig

    @model_validator(mode="after")
    def _fits_together(self) -> AlignedConfig:
        if self.image.gate is not None and not (self.image.unit and self.image.head != "none"):
            raise ValueError("image.gate wants a head, and image.unit = true")
        if self.text.matrices is not None and self.storage == "fp32":
            raise ValueError('text.matrices wants storage = "fp16" or "int8": else they are stored as they were')
        if self.class_map is None and (self.image.head == "none" or self.text.centre == "classes"):
            raise ValueError("without a class_map there is a head, and no centre of its classes")
        return self

    def structure(self) -> str:
        """What shapes the answer and is not in the weights; where they were read from is left out."""
        return self.model_dump_json(exclude={"image": {"weights", "head_weights"}, "text": {"encoder", "vocabulary"}})
