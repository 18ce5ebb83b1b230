FROM ghcr.io/nobody/none:1
