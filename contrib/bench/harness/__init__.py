"""The benchmark's parts.

    main ── arguments, rounds ──► table, further ── what is built ──► client ── docker CLI, curl, HTTP, buildah ──► a peer
                                     │   (scenario: what they share)                                                ▲
                                     ├─► content    fresh files and base images                                     │
                                     ├─► registry   Debian's docker-registry on loopback                            │
                                     └─► memory     resident memory, from /proc              peer ── starts and ends it
    report ◄── numbers of all rounds
"""
