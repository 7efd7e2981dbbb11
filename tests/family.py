"""Specs that differ from the rows of the table in all that a spec can tell."""

import reszoo

# Rows of the table: one for each kind of stem, block and shortcut.
ROWS = (
    "plain18", "resnet10t", "resnext50_32x4d", "resnet50v2", "resnet110", "plain20",
    "preresnet20", "wrn16_4",
)  # fmt: skip
SPECS = {
    spec.name: spec
    for spec in (
        reszoo.ResNetSpec(
            name="tiny",
            depths=(1, 1, 1),
            widths=(16, 32, 64),
            stem="3x3",
            classes=10,
            image_size=32,
        ),
        reszoo.ResNetSpec(
            name="deep",
            depths=(1, 2, 1),
            widths=(16, 32, 64),
            block="bottleneck",
            stem="deep",
            downsampling="avgpool",
            classes=10,
            image_size=32,
        ),
        reszoo.ResNetSpec(
            name="pre",
            depths=(1, 2, 1),
            widths=(16, 32, 64),
            stem="3x3",
            activation_order="pre",
            classes=10,
            image_size=32,
        ),
        reszoo.ResNetSpec(
            name="pre-deep",
            depths=(1, 2),
            widths=(16, 32),
            block="bottleneck",
            expansion=2,
            stem="deep",
            stem_widths=(8, 12, 16),
            shortcut="identity",
            activation_order="pre",
            classes=10,
            image_size=32,
        ),
        reszoo.ResNetSpec(
            name="grouped",
            depths=(1, 2),
            widths=(64, 128),
            block="bottleneck",
            groups=8,
            width_per_group=4,
            classes=10,
            image_size=32,
        ),
        reszoo.ResNetSpec(
            name="late",
            depths=(2, 1, 2),
            widths=(16, 32, 64),
            block="bottleneck",
            expansion=2,
            activation_order="pre",
            stride_block="last",
            bias=True,
            epsilon=0.01,
            classes=10,
            image_size=32,
        ),
    )
}
