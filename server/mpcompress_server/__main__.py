"""`python -m mpcompress_server` is `mpcompress-server`."""

from mpcompress_server.cli import main

main()
