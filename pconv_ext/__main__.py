"""``pconv-ext`` and ``python -m pconv_ext``: see `pconv_ext.inpainting.cli`."""

import sys

from .inpainting._extras import require


def main() -> None:
    if sys.argv[1:] == ["info"]:  # this and the next need no extra
        from .info import report

        print(report())
        return
    if sys.argv[1:] == ["doctor"]:
        from .doctor import report as examination

        text, passed = examination()
        print(text)
        sys.exit(not passed)
    try:
        require("pconv-ext", "typer")
    except ImportError as error:
        sys.exit(str(error))
    try:
        from .inpainting.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
