//! One listener, one door per protocol: routes, hijacks, rendering of progress and errors.
