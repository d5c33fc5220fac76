// The official client, unmodified: uploads a file, looks it up, prints what it was told.
// A stream, because under Node its form can't carry a File.
import { createReadStream } from 'node:fs'
import { APIError, CozeAPI } from '@coze/api'

const [baseURL, path] = process.argv.slice(2)
const client = new CozeAPI({ baseURL, token: process.env.API_KEY })

try {
  const uploaded = await client.files.upload({ file: createReadStream(path) })
  console.log(JSON.stringify({ uploaded, retrieved: await client.files.retrieve(uploaded.id) }))
} catch (error) {
  if (!(error instanceof APIError)) throw error
  const { code, status, msg, logid } = error
  console.log(JSON.stringify({ error: error.constructor.name, code, status, msg, logid }))
}
