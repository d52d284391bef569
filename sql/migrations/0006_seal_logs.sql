-- Messages of the log may be sealed, and what is old goes.

ALTER TABLE logs ADD COLUMN sealed boolean NOT NULL DEFAULT false;
