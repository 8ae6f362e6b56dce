"""An institution's pictures at rest: one directory, in which nothing can be read without the master key.

::

    vault        the vault, for everybody else: create, open, add, read, look up, note, erase, rotate
    records      what goes in and what comes out
    errors       what can go wrong
    master_key   where the key that opens a vault comes from: a passphrase, a key file or the system's keyring

    sealing      the keys below the master key, down to one for each record; subjects and records as sealed rows
    index        the SQLite file of them; database: how such a file is opened and changed, the ledger's too
    commitment   what makes an old, missing, added or exchanged row show
    blobs        sealed files of pictures and of what is computed from them
    access       the parts of an open vault, and whose turn it is
    erasure      forgetting a subject, or what has expired
"""
