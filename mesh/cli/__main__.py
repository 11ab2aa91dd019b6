"""`python -m mesh.cli` is `mesh`."""

from mesh.cli.app import main

if __name__ == "__main__":
    main(prog_name="mesh")
