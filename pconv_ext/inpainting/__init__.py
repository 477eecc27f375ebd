"""Inpainting networks on top of the operators: model, losses, masks and data, training, evaluation, commands.

Nothing here is imported by the operators. What is documented is reached without this package's name:
`pconv_ext.InpaintingNet`, `pconv_ext.masks`, `pconv_ext.training`, ...
"""
