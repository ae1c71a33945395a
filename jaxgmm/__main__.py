import sys

from jaxgmm.command_line import main

if __name__ == "__main__":
    sys.exit(main())
