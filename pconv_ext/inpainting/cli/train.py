"""`pconv-ext train`."""

from pathlib import Path
from typing import Annotated

import typer

from . import settings as options


def train(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the training: checkpoints, TensorBoard.")
    ],
    data: options.Data = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the training in --output, or begin it if there is none."),
    ] = False,
    dataset: options.Dataset = None,
    val: options.Val = None,
    size: options.Size = None,
    crop: options.Crop = None,
    holes: options.Holes = None,
    rectangles: options.Rectangles = None,
    masks: options.Masks = None,
    invert_mask: options.InvertMask = None,
    width: options.Width = None,
    msfef_stages: options.MsfefStages = None,
    kernel_sizes: options.KernelSizes = None,
    depth: options.Depth = None,
    weights: options.Weights = None,
    vgg16: options.Vgg16 = None,
    batch_size: options.BatchSize = None,
    epochs: options.Epochs = None,
    lr: options.Lr = None,
    weight_decay: options.WeightDecay = None,
    patience: options.Patience = None,
    factor: options.Factor = None,
    precision: options.Precision = None,
    save_every: options.SaveEvery = None,
    sync_batchnorm: options.SyncBatchnorm = None,
    seed: options.Seed = None,
    device: options.Device = None,
    workers: options.Workers = 2,
    backend: options.Backend = "auto",
) -> None:
    """Train a network on a folder of pictures.

    Ctrl-C saves a checkpoint, a second one does not. --resume, with or without the other options repeated,
    goes on bit for bit as if nothing had happened. For several GPUs: torchrun --nproc-per-node 4 -m
    pconv_ext train ...
    """
    from ..training import train as run

    if not run(
        options.collect(context), output, resume=resume, device=device, workers=workers, backend=backend
    ):
        typer.echo(f"stopped; {output} holds a checkpoint, --resume goes on from it", err=True)
        raise typer.Exit(130)
