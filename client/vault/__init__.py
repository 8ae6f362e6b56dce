"""An institution's pictures at rest: one directory, in which nothing can be read without the master key.

::

    master_key   where the key that opens the vault comes from: a passphrase, a key file or the system's keyring
    keys         what is derived from it, down to one key for each record
    index        the SQLite file of sealed rows, and its transactions
    commitment   what makes an old, missing, added or exchanged row show
    blobs        sealed files of pictures and of what is computed from them
    records      what goes in and what comes out
    store        the vault itself: add, read, look up, rotate
    erasure      forgetting a subject, or what has expired
    shards       training data made from a vault, with the encoded pictures kept inside it
"""
