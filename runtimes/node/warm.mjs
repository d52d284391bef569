// Imported by a generic sandbox, so that Node.js has loaded what imports modules.
