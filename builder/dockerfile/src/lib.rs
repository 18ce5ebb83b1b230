//! Dockerfile frontend: parser, expansion, .dockerignore, lint and lowering to LLB (pure).
