"""``python -m run_command`` is ``python -m pconv_ext`` where torchvision's binary may not fit torch."""

import torchvision_without_ops

torchvision_without_ops.make_importable()

from pconv_ext.__main__ import main  # noqa: E402

main()
