"""Coming from another implementation: its checkpoints (`convert_state_dict`) and models
(`replace_partial_convs`).

What the public implementations call the tensors of one layer, and what becomes of them:

=======================  ======================================================  ========================
implementation           keys of the layer                                       keys of `PartialConv2d`
=======================  ======================================================  ========================
NVIDIA                   ``weight``, ``bias``                                    the same
mmagic, mmediting        ``weight``, ``bias``, ``weight_mask_updater``           the same, less the last
naoto0804                ``input_conv.weight``, ``.bias``, ``mask_conv.weight``  ``weight``, ``bias``
naoto0804, later         ``conv2d.weight``, ``.bias``, ``mask2d.weight, .bias``  ``weight``, ``bias``
3d-photo-inpainting      as naoto0804                                            ``weight``, ``bias``
climatereconstructionAI  as naoto0804 or with ``conv.*``, and ``bn.*``           these and ``bn.*``
bobqywei                 as naoto0804, and ``batch_normalization.*``             these and the last
xyfJASON                 ``conv.weight``, ``bias``, ``mask_conv_weight``         ``weight``, ``bias``
=======================  ======================================================  ========================

The layers of naoto0804, climatereconstructionAI and bobqywei divide by sum(M) and leave out sum(1), so their
weights are divided by C_in * kh * kw to give the same outputs here; biases stay. That of 3d-photo-inpainting
has the same keys and multiplies by sum(1), which it calls ``slide_winsize``: its weights are kept. A layer
shows which it is; a state dict does not, so `convert_state_dict` asks. All other keys (norms, other layers)
are kept as they are.
"""

from .layers import MMagicPartialConv2d, NormActPartialConv2d
from .replace import replace_partial_convs
from .state_dicts import convert_state_dict

__all__ = ["MMagicPartialConv2d", "NormActPartialConv2d", "convert_state_dict", "replace_partial_convs"]
