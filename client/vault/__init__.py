"""An institution's pictures at rest: one directory, in which nothing can be read without the master key.

::

    store        the vault, for everybody else: add, read, look up, note, erase, rotate
    records      what goes in and what comes out
    errors       what can go wrong
    master_key   where the key that opens a vault comes from: a passphrase, a key file or the system's keyring
    shards       training data made from a vault, with the encoded pictures kept inside it

    keys         what hangs below the master key, down to one key for each record
    sealing      subjects and records as sealed rows
    rows, index  the SQLite file of them, and its transactions
    commitment   what makes an old, missing, added or exchanged row show
    blobs        sealed files of pictures and of what is computed from them
    opening, interior, contents, erasure, rotation    what the store does with these
"""
