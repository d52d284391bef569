module.exports = async (event) => ['whole', event.body];
