//! LLB: the typed build graph and its protobuf form (pure).
