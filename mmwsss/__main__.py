"""Runs the command from a checkout or under torchrun: ``python -m mmwsss VERB``."""

from mmwsss.command import main

if __name__ == '__main__':
    main()
