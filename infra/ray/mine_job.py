"""What `ray submit` and `ray job submit` run on the head: `mine` with this cluster's address and the given flags."""

import subprocess
import sys

if __name__ == "__main__":
    sys.exit(subprocess.call(["grainmill", "mine", "--executor", "ray", "--ray-address", "auto", *sys.argv[1:]]))
