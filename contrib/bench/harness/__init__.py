"""The benchmark's parts.

    main ── arguments, rounds ──► scenario ── what is built ──► client ── docker CLI, curl, HTTP ──► a daemon's socket
                                     │                                                                  ▲
                                     ├─► content   fresh files and base image                           │
                                     └─► memory    resident memory, from /proc          daemon ── starts and stops it
    report ◄── numbers of all rounds
"""
