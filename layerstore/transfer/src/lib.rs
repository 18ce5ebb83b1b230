//! Images into and out of the stores: pull, push, load, save, import, and their layers' tar streams.
