console.log('dying early');
process.exit(4);
