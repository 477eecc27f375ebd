"""``python -m support.run_command`` is ``python -m pconv_ext`` also where torchvision does not fit torch."""

from support import torchvision_without_ops

torchvision_without_ops.make_importable()

from pconv_ext.__main__ import main  # noqa: E402

main()
