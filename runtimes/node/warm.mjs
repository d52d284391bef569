// Imported by a blank, so that Node.js has loaded what imports modules.
