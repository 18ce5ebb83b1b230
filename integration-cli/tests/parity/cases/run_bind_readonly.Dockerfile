FROM busybox
RUN --mount=type=bind,target=/m sh -c "echo x > /m/new" 2>/dev/null || echo refused > /r
